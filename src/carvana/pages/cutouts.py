"""Cars cut out of anyone's photos: a mask and a transparent picture for each photo of a folder."""

from pathlib import Path

import cv2
import numpy as np

from carvana.data.archive import is_data
from carvana.data.pictures import SUFFIXES, write_picture
from carvana.errors import InputError, few
from carvana.log import progress, say
from carvana.prediction.ensemble import Choice
from carvana.prediction.predictor import Predictor


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, by name. Raises InputError if there are none, or two would give the same mask."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds your photos")
    files = (path for path in folder.iterdir() if path.is_file() and is_data(path.name))
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: holds no picture ({', '.join(SUFFIXES)})")
    stems = [path.stem for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(f"{folder}: several pictures named {few(twice)}; rename all but one of each")
    return paths


def write_cutouts(predictor: Predictor, paths: list[Path], folder: Path, choice: Choice) -> int:
    """Writes `<stem>_mask.png` (0 and 255) and `<stem>_cutout.png` (transparent around the car) for each photo.

    A photo that cannot be read is named and passed over; returns how many were. Photos are turned as the camera was.
    """
    unreadable = 0
    for path in progress(paths, "cut out"):
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB) if path.stat().st_size else None
        if image is None:
            say(f"error: {path}: not a picture that OpenCV can read; take it out of the folder, or save it as JPEG")
            unreadable += 1
            continue
        alpha = choice.postprocess((predictor.image(image) >= choice.threshold).cpu().numpy()).astype(np.uint8) * 255
        write_picture(folder / f"{path.stem}_mask.png", alpha)
        write_picture(folder / f"{path.stem}_cutout.png", np.dstack([image, alpha]))
    return unreadable
