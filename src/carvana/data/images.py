"""Photos and their masks: `<car>_<angle>.jpg` and `<car>_<angle>_mask.gif`, as arrays."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath

import numpy as np

from carvana.data.archive import Archive
from carvana.data.decoding import count_colors, decode_image, decode_mask, half_is_enough, read_size
from carvana.data.geometry import Fit, Size
from carvana.data.parts import Part
from carvana.errors import InputError, few
from carvana.log import progress

IMAGE_ID = re.compile(r"(?P<car>.+)_(?P<angle>0[1-9]|1[0-6])")
PHOTO_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})\.(?i:jpg|jpeg|png)")
MASK_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})(?i:_mask\.(gif|png))")
LISTED_FAULTS = 50
PARTS = {"normal": "{}", "hq": "{}_hq"}  # by `data.photos`: of `train` and `test`


def car_of(image_id: str) -> str:
    """The car in `<car>_<angle>`; InputError if the name is not of that form."""
    return _match(image_id)["car"]


def angle_of(image_id: str) -> int:
    """The angle in `<car>_<angle>`, 1 to 16; InputError if the name is not of that form."""
    return int(_match(image_id)["angle"])


def _match(image_id: str) -> re.Match:
    if match := IMAGE_ID.fullmatch(image_id):
        return match
    raise InputError(f"{image_id}: not of the form <car>_<angle> with an angle from 01 to 16")


def read_cars(path: Path) -> list[str]:
    """The cars that a file lists, one id a line with `#` comments, each once. Raises InputError if it lists none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a text file with one car id a line") from error
    cars = [car for line in text.splitlines() if (car := line.partition("#")[0].strip())]
    if not cars:
        raise InputError(f"{path}: lists no car; write one id a line")
    return list(dict.fromkeys(cars))


def open_train(root: Path, cars_file: Path | None = None, quality: str | None = None) -> "Photos":
    """The training photos and masks in `root`, of the cars that `cars_file` lists or of all.

    `quality` is `data.photos`; by default normal ones if there are any. Raises InputError if one lacks in train_hq.
    """
    archive = Archive(root)
    photos = Photos(_photo_part(archive, "train", quality), archive.part("train_masks"))
    photos = photos if cars_file is None else photos.select(read_cars(cars_file))
    if quality == "hq" and (missing := photos.missing()):
        path = photos.photo_part.path
        raise InputError(f"{path}: lacks {few(missing)}, which have masks; download it again, or set data.photos")
    return photos


def open_test(root: Path, cars_file: Path | None = None, quality: str | None = None) -> "Photos":
    """The test photos in `root`, of the cars that `cars_file` lists or of all; `quality` as `open_train`."""
    photos = Photos(_photo_part(Archive(root), "test", quality))
    return photos if cars_file is None else photos.select(read_cars(cars_file))


def _photo_part(archive: Archive, name: str, quality: str | None) -> Part:
    if quality is not None:
        return archive.part(PARTS[quality].format(name))
    try:
        return archive.part(name)
    except InputError:
        with suppress(InputError):
            return archive.part(PARTS["hq"].format(name))
        raise


class Photos:
    """The photos of a part, with their masks if `mask_part` is given; of `cars` only, if given.

    Raises InputError if `photo_part` holds no photo, and later for a photo or mask that is missing or unreadable.
    """

    layers = ()  # of a mask beyond height and width

    def __init__(self, photo_part: Part, mask_part: Part | None = None, cars: Iterable[str] | None = None):
        self.photo_part, self.mask_part = photo_part, mask_part
        cars = None if cars is None else frozenset(cars)
        self._photos = _index(photo_part, PHOTO_NAME, cars)
        self._masks = _index(mask_part, MASK_NAME, cars) if mask_part else {}
        if not self._photos:
            raise InputError(f"{photo_part.path}: no photo named <car>_<angle>.jpg; see input/README.md")

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
            raise InputError(f"{self.photo_part.path}: no photo of {few(absent)}; check the list of cars")
        return Photos(self.photo_part, self.mask_part, cars)

    def name(self, image_id: str) -> str:
        """The photo's name as samples have it, `<car>_<angle>.jpg`: its file's, the ending in lower case."""
        if image_id not in self._photos:
            raise InputError(f"{self.photo_part.where(image_id + '.jpg')}: no such photo")
        return image_id + PurePath(self._photos[image_id]).suffix.lower()

    def _read(self, image_id: str) -> tuple[bytes, str]:
        return _read(self.photo_part, self._photos.get(image_id) or self.name(image_id))

    def image(self, image_id: str, at_least: Size | None = None) -> np.ndarray:
        """The photo, uint8 (height, width, 3) RGB; at half its size where `decode_image` halves it."""
        return decode_image(*self._read(image_id), at_least)

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """The photo at each network size, uint8 (h, w, 3) RGB, and its own (height, width)."""
        data, where = self._read(image_id)
        size, decoded, images = read_size(data, where), {}, []  # decoded: by whether half the size is enough
        for fit in fits:
            halved = half_is_enough(data, size, fit.least)
            if halved not in decoded:
                decoded[halved] = decode_image(data, where, fit.least if halved else None)
            images.append(fit.image(decoded[halved]))
        return images, size

    def mask(self, image_id: str) -> np.ndarray:
        """Where the car is, bool (height, width)."""
        return decode_mask(*_read(self.mask_part, self.mask_name(image_id)))

    def mask_name(self, image_id: str) -> str:
        """The mask's file name, such as `<car>_<angle>_mask.gif`."""
        if self.mask_part is None:
            raise InputError(f"{self.photo_part.path}: opened without masks, so {image_id} has none")
        if image_id not in self._masks:
            missing = self.mask_part.where(f"{image_id}_mask.gif")
            raise InputError(f"{missing}: missing, the mask of {self.name(image_id)}")
        return self._masks[image_id]

    def mask_colors(self, image_id: str) -> int:
        """How many colours the mask's file has in use; two are right, black and one for the car."""
        return count_colors(*_read(self.mask_part, self.mask_name(image_id)))

    def check(self, image_ids: list[str] | None = None) -> None:
        """Reads every photo and mask, or those of `image_ids`.

        Raises one InputError with a line for each faulty file, at most 50.
        """
        faults, image_ids = self.name_faults(), self.image_ids if image_ids is None else image_ids
        with ThreadPool(2) as pool:
            for lines in progress(pool.imap(self.content_faults, image_ids), "check", len(image_ids)):
                faults += lines
        if faults:
            more = len(faults) - LISTED_FAULTS
            raise InputError("\n".join(faults[:LISTED_FAULTS] + [f"... and {more} more"] * (more > 0)))

    def name_faults(self) -> list[str]:
        """A line for each file that is misnamed or occurs twice, and for each mask without a photo."""
        faults = [*_name_faults(self.photo_part, PHOTO_NAME, self._photos, "<car>_<angle>.jpg")]
        if self.mask_part:
            faults += _name_faults(self.mask_part, MASK_NAME, self._masks, "<car>_<angle>_mask.gif")
            alone = [self.mask_part.where(self._masks[image_id]) for image_id in self.missing()]
            faults += [f"{where}: mask without a photo in {self.photo_part.path}" for where in alone]
        return faults

    def missing(self) -> list[str]:
        """The image ids of masks without a photo, sorted."""
        return sorted(self._masks.keys() - self._photos.keys())

    def content_faults(self, image_id: str) -> list[str]:
        """A line for a photo or mask that is missing, unreadable or truncated, or for a mask of another size."""
        readers = [lambda: read_size(*self._read(image_id), whole=True)]
        readers += [lambda: self.mask(image_id).shape] if self.mask_part else []
        sizes, faults = [], []
        for read_size_of in readers:
            try:
                sizes.append(read_size_of())
            except InputError as error:
                faults.append(str(error))
        if len(set(sizes)) == 2:
            path = self.mask_part.where(self._masks[image_id])
            faults.append(f"{path}: (height, width) is {sizes[1]}, its photo's is {sizes[0]}")
        return faults


def _index(part: Part, pattern: re.Pattern, cars: frozenset[str] | None) -> dict[str, str]:
    """File name by image id, in the order of the ids."""
    matches = [match for name in part.names if (match := pattern.fullmatch(name))]
    return dict(sorted((m["image_id"], m[0]) for m in matches if cars is None or m["car"] in cars))


def _read(part: Part, name: str) -> tuple[bytes, str]:
    """A file's bytes, and where they lie, for messages."""
    return part.read(name), part.where(name)


def _name_faults(part: Part, pattern: re.Pattern, index: dict[str, str], form: str) -> Iterator[str]:
    """A line for each file that is not named as it should, or is a second file for its image."""
    duplicates = part.duplicates
    for name in part.names:
        match = pattern.fullmatch(name)
        if match is None:
            yield f"{part.where(name)}: not named {form} with an angle from 01 to 16"
        elif match["image_id"] in index and name in duplicates:
            yield f"{part.where(name)}: there is a second file of this name, {duplicates[name]}; remove one"
        elif (first := index.get(match["image_id"], name)) != name:
            yield f"{part.where(name)}: {first} is of the same image; remove one"
