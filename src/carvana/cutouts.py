"""Cars cut out of anyone's photos: a mask and a transparent picture for each photo of a folder."""

from pathlib import Path

import cv2
import numpy as np

from carvana.choice import Choice
from carvana.device import Device
from carvana.errors import InputError, few
from carvana.inference import Member, predict_image
from carvana.log import progress, say
from carvana.pictures import write_picture

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, by name. Raises InputError if there are none, or two would give the same mask."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds your photos")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise InputError(f"{folder}: holds no picture ({', '.join(PICTURES)})")
    stems = [path.stem for path in found]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(f"{folder}: several pictures named {few(twice)}; rename all but one of each")
    return found


def read_picture(path: Path) -> np.ndarray:
    """uint8 (height, width, 3) RGB, turned as the camera was held. Raises InputError if it is unreadable."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB) if path.stat().st_size else None
    if image is None:
        raise InputError(f"{path}: not a picture that OpenCV can read; take it out of the folder, or save it as JPEG")
    return image


def write_cutouts(members: list[Member], paths: list[Path], folder: Path, choice: Choice, device: Device) -> int:
    """Writes `<stem>_mask.png` (0 and 255) and `<stem>_cutout.png` (transparent around the car) for each photo.

    A photo that cannot be read is told and passed over; returns how many were.
    """
    unreadable = 0
    for path in progress(paths, "cut out"):
        try:
            image = read_picture(path)
        except InputError as error:
            say(f"error: {error}")
            unreadable += 1
            continue
        probs = predict_image(members, image, device)
        mask = choice.postprocess((probs >= choice.threshold).cpu().numpy())
        alpha = mask.astype(np.uint8) * 255
        write_picture(folder / f"{path.stem}_mask.png", alpha)
        write_picture(folder / f"{path.stem}_cutout.png", np.dstack([image, alpha]))
    return unreadable
