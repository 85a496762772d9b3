"""Anyone's photos: which files of a folder they are, and their pixels, upright and in RGB, whatever was stored."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from carvana.data.parts import is_data
from carvana.errors import InputError, few
from carvana.log import replacing

PICTURE_FORMATS = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"}
HEIF = {".heic", ".heif", ".hif"}
RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}  # Pillow would read a thumbnail
COMMON = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SUFFIXES = COMMON | HEIF | RAW | {".jxl", ".psd"}
MOST_PIXELS, LONGEST_SIDE = 2**28, 2**16  # 16384 x 16384, more than any phone takes
BITS_PER_SAMPLE = 258  # a tag of TIFF
MAKER = "carvana cut_out"  # begins the PNG text `Software` of what is written here


class OwnPhoto(NamedTuple):
    image: np.ndarray  # uint8 (h, w, 3) RGB
    alpha: np.ndarray | None  # uint8 (h, w), None if it is opaque
    profile: bytes | None  # ICC, of RGB colours; None is sRGB

    def over_white(self) -> np.ndarray:
        """uint8 (h, w, 3): what is transparent is white, as the studio."""
        if self.alpha is None:
            return self.image
        white = Image.new("RGB", self.image.shape[1::-1], "white")
        return np.array(Image.composite(Image.fromarray(self.image), white, Image.fromarray(self.alpha)))


def find_photos(folder: Path, output: Path) -> dict[Path, tuple[Path, Path]]:
    """The mask and the cut-out in `output` of each photo in a folder, by name; what was written here is no photo.

    Files are photos by their ending or their first bytes; a raw file beside its JPEG is none. Raises InputError if
    there are none, if two would give the same mask, or if a mask or cut-out would replace a photo.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the one that holds your photos")
    paths = [path for path in sorted(folder.iterdir()) if not path.is_dir() and _is_photo(path)]
    stem_of = lambda path: unicodedata.normalize("NFC", path.stem).casefold()  # as some file systems compare
    raw = {path for path in paths if path.suffix.lower() in RAW}
    developed = {stem_of(path) for path in set(paths) - raw}
    paths = [path for path in paths if path not in raw or stem_of(path) not in developed]
    if not paths:
        raise InputError(f"{folder}: holds no picture ({', '.join(sorted(COMMON | HEIF))})")
    stems = list(map(stem_of, paths))
    if twice := [path.name for path, stem in zip(paths, stems, strict=True) if stems.count(stem) > 1]:
        raise InputError(f"{folder}: several pictures of one name, {few(twice)}; rename all but one of each")
    targets = {path: (output / f"{path.stem}_mask.png", output / f"{path.stem}_cutout.png") for path in paths}
    photos = {path.resolve() for path in paths}
    if replaced := [target for pair in targets.values() for target in pair if target.resolve() in photos]:
        raise InputError(f"{replaced[0]}: a photo that a mask would replace; rename it, or give another --output")
    return targets


def _is_photo(path: Path) -> bool:
    if not is_data(path.name):
        return False
    with suppress(Exception), open_picture(path) as picture:
        return not str(picture.info.get("Software")).startswith(MAKER)
    return path.suffix.lower() in SUFFIXES  # to be named, if it cannot be read


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of which the header is read. Pillow's own limit of pixels does not hold: phones take more."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path, formats=_formats()) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(PICTURE_FORMATS & Image.OPEN.keys())


def read_photo(path: Path) -> OwnPhoto:
    """Raises InputError that names the file, the reason and the remedy."""
    suffix = path.suffix.lower()
    if suffix in RAW:
        raise InputError(f"{path}: a camera's raw file; export it as JPEG or TIFF")
    try:
        with open_picture(path) as picture:
            size = width, height = picture.size
            if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE:
                raise InputError(f"{path}: {width} x {height} pixels, too many; make it smaller than 16384 x 16384")
            return _decode(picture)
    except UnidentifiedImageError:
        missing = suffix in HEIF and not find_spec("pillow_heif")
        remedy = "pip install pillow-heif, or save it as JPEG" if missing else "save it as JPEG or PNG"
        raise InputError(f"{path}: not a picture that can be read here; {remedy}") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like of a broken file
        raise InputError(f"{path}: unreadable ({error}); copy it again, or save it as JPEG") from error


def _decode(picture: Image.Image) -> OwnPhoto:
    ImageOps.exif_transpose(picture, in_place=True)
    profile, base = picture.info.get("icc_profile"), Image.getmodebase(picture.mode)
    if picture.mode == "F":
        raise ValueError("its pixels are no whole numbers")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip, or 12 in a TIFF
        bits = 12 if 12 in getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, ()) else 16
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) >> (bits - 8)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    alpha = np.array(picture.getchannel("A")) if picture.mode == "RGBA" else None
    if profile and profile[16:20] != b"RGB ":  # of inks or greys: not for the PNG that comes of it
        picture, profile = convert_colors(picture.convert("L") if base == "L" else picture, profile, None), None
    return OwnPhoto(np.array(picture.convert("RGB")), alpha, profile)


def convert_colors(picture: Image.Image, source: bytes | None, target: bytes | None) -> Image.Image:
    """From one ICC profile to another, of RGB; None is sRGB. If one of them is broken the colours stay as stored."""
    try:
        srgb = ImageCms.createProfile("sRGB")
        profiles = [ImageCms.ImageCmsProfile(BytesIO(data)) if data else srgb for data in (source, target)]
        return ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture.convert("RGB")


def write_png(path: Path, pixels: np.ndarray, maker: str, profile: bytes | None = None) -> None:
    """uint8 (h, w), (h, w, 3) or (h, w, 4), whole or not at all; `maker` begins with MAKER."""
    text = PngInfo()
    text.add_text("Software", maker)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", icc_profile=profile, pnginfo=text, compress_level=3)


def maker_of(path: Path) -> str | None:
    """What `write_png` was given; None if there is no such file or it is another's."""
    with suppress(Exception), open_picture(path) as picture:
        return picture.info.get("Software")
