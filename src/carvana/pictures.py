"""Pictures for people: written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np

from carvana.errors import InputError
from carvana.log import replacing


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (h, w, 3) RGB in the format of the file's ending. Raises InputError if OpenCV cannot."""
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: OpenCV cannot write such a picture; give a name in .jpg or .png")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
