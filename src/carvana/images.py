"""Photos and their masks: `<car>_<angle>.jpg` and `<car>_<angle>_mask.gif`, as arrays."""

import re
from collections.abc import Iterable, Iterator
from copy import copy
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from carvana.archive import Archive, Part
from carvana.decoding import count_colors, decode_image, decode_mask, half_is_enough, read_size, verified_size
from carvana.errors import InputError, few
from carvana.geometry import Fit, Size, Window
from carvana.log import progress

IMAGE_ID = re.compile(r"(?P<car>.+)_(?P<angle>0[1-9]|1[0-6])")
PHOTO_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})\.(jpg|jpeg|png)")
MASK_NAME = re.compile(rf"(?P<image_id>{IMAGE_ID.pattern})_mask\.(gif|png)")
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


def open_test(root: Path, part: str = "test", cars_file: Path | None = None) -> "Photos":
    """The photos of a part without masks in the folder `root`, of the cars that `cars_file` lists or of all."""
    photos = Photos(Archive(root).part(part))
    return photos if cars_file is None else photos.select(read_cars(cars_file))


class Photos:
    """The photos of a part, with their masks if `mask_part` is given; of `cars` only, if given.

    Raises InputError if `photo_part` holds no photo. What else may be wrong with the files, `check` tells.
    """

    def __init__(self, photo_part: Part, mask_part: Part | None = None, cars: Iterable[str] | None = None):
        self._windows: dict[str, dict[str, Window]] = {}
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
            raise InputError(f"{self.photo_part.path}: no photo of {few(absent)}; check the list of cars")
        return Photos(self.photo_part, self.mask_part, cars)

    def name(self, image_id: str) -> str:
        """The photo's file name, such as `<car>_<angle>.jpg`. Raises InputError if there is no such photo."""
        if image_id not in self._photos:
            raise InputError(f"{self.photo_part.where(image_id + '.jpg')}: no such photo")
        return self._photos[image_id]

    def image(self, image_id: str, at_least: Size | None = None) -> np.ndarray:
        """The photo, uint8 (height, width, 3) RGB; at half its size where `decode_image` halves it.

        Raises InputError if it is missing or unreadable.
        """
        return decode_image(*self._read(image_id), at_least)

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """The photo at each network size, uint8 (h, w, 3) RGB, and its own (height, width).

        It is decoded at half its size for those for which that is enough, so that what a network sees does not depend
        on the others. Raises InputError as `image` does.
        """
        data, where = self._read(image_id)
        decoded, images = {}, []
        for fit in fits:
            at_least = fit.least
            halved = half_is_enough(data, where, at_least)
            if halved not in decoded:
                decoded[halved] = decode_image(data, where, at_least if halved else None)
            images.append(fit.image(decoded[halved]))
        whole = decoded.get(False)
        return images, read_size(data, where) if whole is None else whole.shape[:2]

    def with_windows(self, boxes_from: str, windows: dict[str, Window]) -> "Photos":
        """The same photos; where `boxes_from` has found the car in them is known."""
        same = copy(self)
        same._windows = self._windows | {boxes_from: self._windows.get(boxes_from, {}) | windows}
        return same

    def through(self, image_id: str, fit: Fit) -> Fit:
        """The fit for this photo: through the window that is known of it, if the fit asks for one."""
        return fit if fit.boxes_from is None else fit.through(self._windows[fit.boxes_from][image_id])

    def mask(self, image_id: str) -> np.ndarray:
        """Where the car is, bool (height, width). Raises InputError if the mask is missing or unreadable."""
        part = self.mask_part
        if part is None:
            raise InputError(f"{self.photo_part.path}: opened without masks, so {image_id} has none")
        if image_id not in self._masks:
            raise InputError(f"{part.where(image_id + '_mask.gif')}: missing, the mask of {self.name(image_id)}")
        name = self._masks[image_id]
        return decode_mask(part.read(name), part.where(name))

    def mask_name(self, image_id: str) -> str:
        """The mask's file name, such as `<car>_<angle>_mask.gif`; `mask` tells whether there is one."""
        return self._masks[image_id]

    def mask_colors(self, image_id: str) -> int:
        """How many colours the mask's file has in use; two are right, black and one for the car."""
        name = self._masks[image_id]
        return count_colors(self.mask_part.read(name), self.mask_part.where(name))

    def check(self) -> None:
        """Reads every photo and mask; raises one InputError with a line for each faulty file, at most 50.

        Faults: a name not of the expected form, a name occurring twice, a photo without a mask or a mask
        without a photo (if there are masks at all), a mask of another size, an unreadable or truncated file.
        """
        faults = self.name_faults()
        with ThreadPool(2) as pool:
            read = pool.imap(self.content_faults, self._photos)
            faults += [line for lines in progress(read, "check", len(self._photos)) for line in lines]
        if faults:
            more = [f"... and {len(faults) - LISTED_FAULTS} more"] if len(faults) > LISTED_FAULTS else []
            raise InputError("\n".join(faults[:LISTED_FAULTS] + more))

    def name_faults(self) -> list[str]:
        """A line for each file that is misnamed, or there twice, and for each mask without a photo."""
        faults = list(_name_faults(self.photo_part, PHOTO_NAME, self._photos))
        if self.mask_part:
            faults += _name_faults(self.mask_part, MASK_NAME, self._masks)
            alone = sorted(self._masks.keys() - self._photos.keys())
            faults += [f"{self.mask_part.where(self._masks[image_id])}: mask without a photo" for image_id in alone]
        return faults

    def content_faults(self, image_id: str) -> list[str]:
        """A line for a photo or mask that is missing, unreadable or truncated, or for a mask of another size."""
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

    def _photo_size(self, image_id: str) -> Size:
        return verified_size(*self._read(image_id))

    def _mask_size(self, image_id: str) -> Size:
        return self.mask(image_id).shape

    def _read(self, image_id: str) -> tuple[bytes, str]:
        """The photo's bytes, and where they lie, for messages."""
        name = self.name(image_id)
        return self.photo_part.read(name), self.photo_part.where(name)


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
