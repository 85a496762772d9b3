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
JPEG_START, JPEG_END, PNG_START, PNG_END = b"\xff\xd8", b"\xff\xd9", b"\x89PNG", b"IEND"
GREY = 128  # what decoders fill a photo up with if its data ends too early
TAIL = 1024  # bytes after the end that do not matter
PHOTO_FORMATS, MASK_FORMATS = ("JPEG", "PNG"), ("GIF", "PNG")
TOO_LARGE = Image.DecompressionBombError  # from 179 million pixels on
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, TOO_LARGE)  # what Pillow raises


def decode_image(data: bytes, name: str, at_least: Size | None = None) -> np.ndarray:
    """A photo's bytes as uint8 (height, width, 3) RGB; at half its size if that is not below `at_least`.

    Raises InputError naming `name` if it is unreadable, truncated, damaged as far as one can know, or far too large.
    """
    end, size = _find_end(data, name), read_size(data, name)  # before memory is taken
    flags = HALVED if half_is_enough(data, size, at_least) else RGB_AS_STORED
    image = _decode(data, flags)
    if image is None:
        raise InputError(f"{name}: unreadable; download it again")
    # A decoder fills missing rows with grey. Where the last pixels are grey, bytes are put before the end marker, or in
    # the place of the last eight: a photo that is whole does not change by the first, and does by the second.
    if (image[-1, -2:] == GREY).all() and data.startswith(JPEG_START):
        longer, other = (_decode(data[: end - cut] + b"\x5a" * 64 + data[end:], flags) for cut in (0, 8))
        if not np.array_equal(image, longer) or np.array_equal(image, other):
            raise InputError(f"{name}: damaged, its data ends before its last pixel; download it again")
    return image


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def half_is_enough(data: bytes, size: Size, at_least: Size | None) -> bool:
    """Whether `decode_image` halves a photo of that size: only a JPEG, where that takes a third of the time."""
    if at_least is None or not data.startswith(JPEG_START):
        return False
    sides = zip(size, at_least, strict=True)  # half of an odd one would move the photo off its mask
    return all(side % 2 == 0 and side // 2 >= needed for side, needed in sides)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask's bytes as bool (height, width), true on the car: any colour but black, the alpha channel aside.

    Raises InputError naming `name` if it is unreadable or truncated, or neither GIF nor PNG.
    """
    _find_end(data, name)
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
    _find_end(data, name)
    with _opened(data, name, MASK_FORMATS) as image:
        if image.mode.startswith("I"):  # 16 bits, which Pillow does not convert
            return min(256, len(np.unique(np.asarray(image))))
        return len(image.convert("RGB").getcolors(256) or range(256))


def read_size(data: bytes, name: str, whole: bool = False) -> Size:
    """A photo's (height, width), from its header. Raises InputError naming `name` if that is unreadable.

    With `whole` it raises as `decode_image` does, in a third of its time: all is decoded, but to an eighth of the size.
    """
    if whole:
        _find_end(data, name)
    with _opened(data, name, PHOTO_FORMATS) as image:
        width, height = image.size
        if whole:
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
    if whole and (np.asarray(image)[-1, -2:] == GREY).all():
        decode_image(data, name)  # looks closer
    return height, width


@contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Pillow's image; what Pillow raises in the block becomes an InputError naming `name`."""
    try:
        with Image.open(BytesIO(data), formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a {' or '.join(formats)} file; download it again") from error
    except UNREADABLE as error:
        raise InputError(f"{name}: unreadable ({error}); download it again") from error


def _find_end(data: bytes, name: str) -> int:
    """Where the end marker of a JPEG or PNG is. Raises InputError if there is none, or much behind it."""
    if data.startswith(JPEG_START):
        marker, end = JPEG_END, data.find(JPEG_END, _skip_header(data))
    elif data.startswith(PNG_START):
        marker, end = PNG_END, data.rfind(PNG_END)
    else:
        return len(data)
    if end < 0:  # OpenCV would fill the rest up with grey
        raise InputError(f"{name}: truncated; download it again")
    tail = data[end + len(marker) :]
    if len(tail) > TAIL and not tail.startswith(JPEG_START):  # phones append a second picture
        raise InputError(f"{name}: {len(tail)} bytes after its end; download it again, or save it anew")
    return end


def _skip_header(data: bytes) -> int:
    """Where a JPEG's pixels begin: at the first start of scan, behind a thumbnail, which has markers of its own."""
    place = len(JPEG_START)
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return place
