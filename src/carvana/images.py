"""Photos and their masks: `<car>_<angle>.jpg` and `<car>_<angle>_mask.gif`, as arrays."""

import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from carvana.archive import Archive, Part
from carvana.errors import InputError
from carvana.log import progress

IMAGE_ID = re.compile(r"(?P<car>.+)_(?P<angle>0[1-9]|1[0-6])")
PHOTO_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})\.(jpg|jpeg|png)")
MASK_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})_mask\.(gif|png)")
RGB_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # a turned photo would not fit its mask
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)  # what Pillow raises
END_BY_START = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
LISTED_FAULTS = 50


def car_of(image_id: str) -> str:
    """The car in `<car>_<angle>`. Raises InputError if the name is not of that form."""
    return _match(image_id)["car"]


def angle_of(image_id: str) -> int:
    """The angle in `<car>_<angle>`, 1 to 16. Raises InputError if the name is not of that form."""
    return int(_match(image_id)["angle"])


def _match(image_id: str) -> re.Match:
    if match := IMAGE_ID.fullmatch(image_id):
        return match
    raise InputError(f"{image_id}: not of the form <car>_<angle> with an angle from 01 to 16")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """A photo's bytes as uint8 (height, width, 3) RGB.

    Raises InputError naming `name` if it is unreadable or truncated.
    """
    _refuse_cut(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), RGB_AS_STORED)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"{name}: unreadable; download it again")
    return image


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask's bytes as bool (height, width), true on the car: any colour but black, the alpha channel aside.

    Raises InputError naming `name` if it is unreadable or truncated, or neither GIF nor PNG.
    """
    with _opened(data, name, ("GIF", "PNG")) as image:
        pixels, mode = np.asarray(image), image.mode
        palette = image.getpalette() if mode == "P" else None
    if palette:
        colored = np.zeros(256, np.uint8)
        colored[: len(palette) // 3] = np.reshape(palette, (-1, 3)).any(axis=1)
        return cv2.LUT(pixels, colored).view(bool)
    if pixels.ndim == 3:
        return pixels[..., : 1 if mode == "LA" else 3].any(axis=2)
    return pixels > 0


def _verified_size(data: bytes, name: str) -> tuple[int, int]:
    """A photo's (height, width). Raises InputError as `decode_image` does, in a third of its time.

    The whole file is decoded, but only to an eighth of the size.
    """
    with _opened(data, name, ("JPEG", "PNG")) as image:
        width, height = image.size
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


def read_cars(path: Path) -> list[str]:
    """The cars that a file lists, one id a line; blank lines and `#` comments aside, repeated ids once.

    Raises InputError if the file cannot be read or lists none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a text file with one car id a line") from error
    cars = [line.partition("#")[0].strip() for line in text.splitlines()]
    if not any(cars):
        raise InputError(f"{path}: lists no car; write one id a line")
    return list(dict.fromkeys(filter(None, cars)))


def open_train(root: Path, cars_file: Path | None = None) -> "Photos":
    """The training photos and masks in the folder `root`, of the cars that `cars_file` lists or of all."""
    archive = Archive(root)
    photos = Photos(archive.part("train"), archive.part("train_masks"))
    return photos if cars_file is None else photos.select(read_cars(cars_file))


def open_test(root: Path, part: str = "test") -> "Photos":
    """The photos of a part without masks in the folder `root`."""
    return Photos(Archive(root).part(part))


class Photos:
    """The photos of a part, with their masks if `mask_part` is given; of `cars` only, if given.

    Raises InputError if `photo_part` holds no photo. What else may be wrong with the files, `check` tells.
    """

    def __init__(self, photo_part: Part, mask_part: Part | None = None, cars: Iterable[str] | None = None):
        self.photo_part, self.mask_part = photo_part, mask_part
        self._chosen = None if cars is None else frozenset(cars)
        self._photos = self._index(photo_part, PHOTO_NAME)
        self._masks = self._index(mask_part, MASK_NAME) if mask_part else {}
        if not self._photos:
            raise InputError(f"{photo_part.path}: no photo named <car>_<angle>.jpg; see input/README.md")

    def _index(self, part: Part, pattern: re.Pattern) -> dict[str, str]:
        """File name by image id, in the order of the ids."""
        matches = [match for name in part.names if (match := pattern.fullmatch(name))]
        chosen = self._chosen
        names = {m["image_id"]: m[0] for m in matches if chosen is None or m["car"] in chosen}
        return dict(sorted(names.items()))

    @property
    def image_ids(self) -> list[str]:
        """`<car>_<angle>` of every photo, sorted."""
        return list(self._photos)

    @property
    def cars(self) -> list[str]:
        """The cars photographed, sorted."""
        return sorted(set(map(car_of, self._photos)))

    def select(self, cars: Iterable[str]) -> "Photos":
        """The photos of these cars. Raises InputError naming cars that have none."""
        cars = list(cars)
        if absent := sorted(set(cars).difference(self.cars)):
            listed = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            raise InputError(f"{self.photo_part.path}: no photo of {listed}; check the list of cars")
        return Photos(self.photo_part, self.mask_part, cars)

    def name(self, image_id: str) -> str:
        """The photo's file name, such as `<car>_<angle>.jpg`. Raises InputError if there is no such photo."""
        if image_id not in self._photos:
            raise InputError(f"{self.photo_part.where(image_id + '.jpg')}: no such photo")
        return self._photos[image_id]

    def image(self, image_id: str) -> np.ndarray:
        """The photo, uint8 (height, width, 3) RGB. Raises InputError if it is missing or unreadable."""
        name = self.name(image_id)
        return decode_image(self.photo_part.read(name), self.photo_part.where(name))

    def mask(self, image_id: str) -> np.ndarray:
        """Where the car is, bool (height, width). Raises InputError if the mask is missing or unreadable."""
        part = self.mask_part
        if part is None:
            raise InputError(f"{self.photo_part.path}: opened without masks, so {image_id} has none")
        if image_id not in self._masks:
            raise InputError(f"{part.where(image_id + '_mask.gif')}: missing, the mask of {self.name(image_id)}")
        name = self._masks[image_id]
        return decode_mask(part.read(name), part.where(name))

    def check(self) -> None:
        """Reads every photo and mask; raises one InputError with a line for each faulty file, at most 50.

        Faults: a name not of the expected form, a name occurring twice, a photo without a mask or a mask
        without a photo (if there are masks at all), a mask of another size, an unreadable or truncated file.
        """
        faults = list(_name_faults(self.photo_part, PHOTO_NAME, self._photos))
        if self.mask_part:
            faults += _name_faults(self.mask_part, MASK_NAME, self._masks)
            alone = sorted(self._masks.keys() - self._photos.keys())
            faults += [f"{self.mask_part.where(self._masks[id])}: mask without a photo" for id in alone]
        with ThreadPool(2) as pool:
            read = pool.imap(self._content_faults, self._photos)
            faults += [line for lines in progress(read, "check", len(self._photos)) for line in lines]
        if faults:
            more = [f"... and {len(faults) - LISTED_FAULTS} more"] if len(faults) > LISTED_FAULTS else []
            raise InputError("\n".join(faults[:LISTED_FAULTS] + more))

    def _content_faults(self, image_id: str) -> list[str]:
        sizes, faults = [], []
        for size_of in (self._photo_size, self._mask_size) if self.mask_part else (self._photo_size,):
            try:
                sizes.append(size_of(image_id))
            except InputError as error:
                faults.append(str(error))
        if len(set(sizes)) == 2:
            where = self.mask_part.where(self._masks[image_id])
            faults.append(f"{where}: (height, width) is {sizes[1]}, its photo's is {sizes[0]}")
        return faults

    def _photo_size(self, image_id: str) -> tuple[int, int]:
        name = self.name(image_id)
        return _verified_size(self.photo_part.read(name), self.photo_part.where(name))

    def _mask_size(self, image_id: str) -> tuple[int, int]:
        return self.mask(image_id).shape


def _name_faults(part: Part, pattern: re.Pattern, index: dict[str, str]) -> Iterator[str]:
    """A line for each file that is not named as it should, or is a second file for its image."""
    form = "<car>_<angle>.jpg" if pattern is PHOTO_NAME else "<car>_<angle>_mask.gif"
    duplicates = set(part.duplicates)
    for name in part.names:
        match = pattern.fullmatch(name)
        if match is None:
            yield f"{part.where(name)}: not named {form} with an angle from 01 to 16"
        elif match["image_id"] in index and (name in duplicates or index[match["image_id"]] != name):
            yield f"{part.where(name)}: there is another file for {match['image_id']}"
