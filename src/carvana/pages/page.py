"""Pages for people: one self-contained HTML file each, pictures in it, nothing fetched from anywhere."""

import base64
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from carvana.log import replacing


def write_page(path: Path, template: str, **values: object) -> None:
    """Renders a template of this folder and writes it whole or not at all; text in `values` is escaped."""
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    jinja = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    with replacing(path) as temporary:
        temporary.write_text(jinja.get_template(template).render(values), encoding="utf-8")


def embed(image: np.ndarray, quality: int = 75) -> str:
    """uint8 (h, w, 3) RGB or (h, w, 4) RGBA as a WebP in a `data:` address."""
    stored = image[..., [2, 1, 0, 3][: image.shape[2]]]
    _, data = cv2.imencode(".webp", stored, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(data).decode()
