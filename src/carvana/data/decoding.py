"""Bytes of photos and masks to arrays: OpenCV for photos, Pillow for GIFs and for what needs no full decoding."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from carvana.data.geometry import Size
from carvana.errors import InputError

RGB_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # a turned photo would not fit its mask
HALVED = RGB_AS_STORED | cv2.IMREAD_REDUCED_GRAYSCALE_2  # not REDUCED_COLOR_2: it has the bit of BGR
JPEG_START = b"\xff\xd8"
END_BY_START = {JPEG_START: b"\xff\xd9", b"\x89PNG": b"IEND"}
PHOTO_FORMATS, MASK_FORMATS = ("JPEG", "PNG"), ("GIF", "PNG")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # what Pillow raises


def decode_image(data: bytes, name: str, at_least: Size | None = None) -> np.ndarray:
    """A photo's bytes as uint8 (height, width, 3) RGB; at half its size if that is not below `at_least`.

    Raises InputError naming `name` if it is unreadable or truncated.
    """
    _refuse_cut(data, name)
    halved = half_is_enough(data, name, at_least)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), HALVED if halved else RGB_AS_STORED)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"{name}: unreadable; download it again")
    return image


def half_is_enough(data: bytes, name: str, at_least: Size | None) -> bool:
    """Whether `decode_image` halves the photo: only a JPEG, where that takes a third of the time."""
    if at_least is None or not data.startswith(JPEG_START):
        return False
    sides = zip(read_size(data, name), at_least, strict=True)  # half of an odd one would move the photo off its mask
    return all(side % 2 == 0 and side // 2 >= needed for side, needed in sides)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask's bytes as bool (height, width), true on the car: any colour but black, the alpha channel aside.

    Raises InputError naming `name` if it is unreadable or truncated, or neither GIF nor PNG.
    """
    with _opened(data, name, MASK_FORMATS) as image:
        pixels, mode = np.asarray(image), image.mode
        palette = image.getpalette() if mode == "P" else None
    if palette:
        colored = np.zeros(256, np.uint8)
        colored[: len(palette) // 3] = np.reshape(palette, (-1, 3)).any(axis=1)
        return cv2.LUT(pixels, colored).view(bool)
    if pixels.ndim == 3:
        return pixels[..., : 1 if mode == "LA" else 3].any(axis=2)
    return pixels > 0


def count_colors(data: bytes, name: str) -> int:
    """How many colours of a mask's bytes are in use, at most 256, the alpha channel aside; errors as `decode_mask`."""
    with _opened(data, name, MASK_FORMATS) as image:
        if image.mode.startswith("I"):  # 16 bits, which Pillow does not convert
            return min(256, len(np.unique(np.asarray(image))))
        return len(image.convert("RGB").getcolors(256) or range(256))


def read_size(data: bytes, name: str, whole: bool = False) -> Size:
    """A photo's (height, width), from its header. Raises InputError naming `name` if that is unreadable.

    With `whole` it raises as `decode_image` does, in a third of its time: all is decoded, but to an eighth of the size.
    """
    with _opened(data, name, PHOTO_FORMATS) as image:
        width, height = image.size
        if whole:
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
    return height, width


@contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Pillow's image; what Pillow raises in the block becomes an InputError naming `name`."""
    _refuse_cut(data, name)
    try:
        with Image.open(BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a {' or '.join(formats)} file; download it again") from error
    except UNREADABLE as error:
        raise InputError(f"{name}: unreadable ({error}); download it again") from error


def _refuse_cut(data: bytes, name: str) -> None:
    """Raises InputError if a JPEG or PNG has no end marker: OpenCV would fill the rest up with grey."""
    for start, end in END_BY_START.items():
        if data.startswith(start) and end not in data[-1024:]:
            raise InputError(f"{name}: truncated; download it again")
