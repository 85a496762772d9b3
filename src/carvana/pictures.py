"""Pictures for people: written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np

from carvana.errors import InputError
from carvana.log import replacing


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (h, w), (h, w, 3) RGB or (h, w, 4) RGBA in the format of the file's ending.

    Raises InputError if OpenCV cannot.
    """
    turned = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    try:
        done, data = cv2.imencode(path.suffix, turned)
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: OpenCV cannot write such a picture; give a name in .jpg or .png")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
