"""Pseudo-labels (Lee, 2013): photos without true masks, with the masks that networks gave them, to train on as well.

The masks are hard ones with disputed pixels left out, or soft ones: the probabilities themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from torch.utils.data import Subset

from carvana.config import DataConfig
from carvana.data.cache import PhotoCache
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos, car_of, open_test
from carvana.data.labels import SOFT, Source, read_labels, read_source
from carvana.data.rle import rle_decode
from carvana.data.soft import SoftenedPhotos, SoftMasks
from carvana.errors import InputError, few
from carvana.log import say


@dataclass(frozen=True)
class HardMasks:
    """Masks with two layers: the car, and what the networks did not agree on."""

    runs: dict[str, tuple[str, str]]  # of each layer, by image_id
    size: Size
    layers = (2,)  # as those of `Photos`

    @property
    def image_ids(self) -> dict[str, tuple[str, str]]:
        """In their order; `in` looks one up at once."""
        return self.runs

    def only(self, image_ids: Iterable[str]) -> "HardMasks":
        """Those of these photos: what goes to the processes that load them."""
        return HardMasks({image_id: self.runs[image_id] for image_id in image_ids}, self.size)

    def mask(self, image_id: str) -> np.ndarray:
        """bool (height, width, 2)."""
        return np.dstack([rle_decode(rle, self.size) for rle in self.runs[image_id]])


@dataclass(frozen=True)
class PseudoPhotos:
    """Photos with the masks that networks gave them."""

    source: Source
    photos: Photos
    masks: HardMasks | SoftMasks

    @property
    def cars(self) -> list[str]:
        """The cars photographed, sorted."""
        return sorted(set(map(car_of, self.masks.image_ids)))

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """As `Photos.fitted`. Raises InputError if the photo is of another size than its label."""
        images, size = self.photos.fitted(image_id, fits)
        if size != self.source.size:
            sizes = f"labels of {self.source.size}, but {self.photos.name(image_id)} is of {size}"
            raise InputError(f"{self.source.path}: {sizes}")
        return images, size


def open_pseudo(data: DataConfig, input_root: Path) -> PseudoPhotos | None:
    """What `data.pseudo` names, without the unsure photos, and says how many these are; None if it names nothing.

    Soft masks say themselves how sure they are: all are taken. Raises InputError if the file is not as it was written
    or of photos that are not there, or if none is sure enough.
    """
    if data.pseudo is None:
        return None
    path = Path(data.pseudo)
    source = read_source(path, "data.pseudo")
    if source.out_of_fold:
        raise InputError(
            f"data.pseudo: {path}: of photos with masks, from src/evaluate.py --soft; name it in data.soft"
        )
    if source.kind == SOFT:
        masks = SoftMasks(source)
        say(f"{path}: probabilities of {len(masks.image_ids)} photos")
    else:
        masks = HardMasks(_read_sure(path, data.pseudo_least), source.size)
    photos = open_test(Path(data.pseudo_input or input_root), quality=data.photos)
    if missing := sorted(masks.image_ids.keys() - set(photos.image_ids)):
        where = photos.photo_part.path
        raise InputError(f"data.pseudo: {where}: lacks {few(missing)} of {path}; set data.pseudo_input to their folder")
    return PseudoPhotos(source, photos, masks)


def _read_sure(path: Path, least: float) -> dict[str, tuple[str, str]]:
    """By image_id the runs of mask and dispute; says how many photos are left out."""
    labels, count = {}, 0
    for count, label in enumerate(read_labels(path), 1):  # noqa: B007
        if min(label.expected_dice, label.agreement) >= least:
            labels[PurePath(label.img).stem] = label.rle_mask, label.disputed
    unsure = f"expected Dice or agreement below data.pseudo_least={least:g}"
    if not labels:
        raise InputError(f"data.pseudo: {path}: all {count} photos have {unsure}; lower it, or leave data.pseudo out")
    say(f"{path}: {len(labels)} pseudo-labelled photos; {count - len(labels)} left out with {unsure}")
    return labels


class MixedPhotos:
    """Photos with true masks, then pseudo-labelled ones; all masks have the layers of these."""

    def __init__(self, photos: Photos | SoftenedPhotos, pseudo: PseudoPhotos):
        self.photos, self.pseudo, self.layers = photos, pseudo, pseudo.masks.layers
        self.image_ids = [*photos.image_ids, *pseudo.masks.image_ids]

    def only(self, image_ids: Iterable[str]) -> "MixedPhotos":
        """With these of the pseudo-labelled photos."""
        return MixedPhotos(self.photos, replace(self.pseudo, masks=self.pseudo.masks.only(image_ids)))

    def mask(self, image_id: str) -> np.ndarray:
        """bool or, if soft, uint8 (height, width, *layers); in true ones nothing is disputed."""
        if image_id in self.pseudo.masks.image_ids:
            return self.pseudo.masks.mask(image_id)
        mask = self.photos.mask(image_id)
        return np.dstack([mask, np.zeros_like(mask)]) if self.layers else mask

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """As `Photos.fitted`."""
        return (self.pseudo if image_id in self.pseudo.masks.image_ids else self.photos).fitted(image_id, fits)


TrainingPhotos = Photos | SoftenedPhotos | MixedPhotos
"""What a cache can be made of."""


def epoch_photos(source: PhotoCache, labelled: int, share: float, seed: int, epoch: int) -> Subset:
    """The photos of one epoch: the first `labelled` ones, and of the others as many as the share asks for, drawn anew.

    The draw depends on seed and epoch alone. If there are fewer than asked for, all are taken, once. The masks of the
    others do not go to the processes that load: all of the test's would fill their memory.
    """
    pseudo = len(source) - labelled
    drawn = np.random.default_rng([seed, epoch]).permutation(pseudo)[: drawn_photos(labelled, pseudo, share)]
    places = [*range(labelled), *(labelled + drawn).tolist()]
    if len(drawn):
        source = source.of(source.photos.only(source.image_ids[place] for place in places[labelled:]))
    return Subset(source, places)


def drawn_photos(labelled: int, pseudo: int, share: float) -> int:
    """How many of the `pseudo` photos an epoch has beside its `labelled` ones."""
    return min(pseudo, round(share * labelled))


def kept_photos(labelled: int, pseudo: int, drawn: int, room: int) -> float:
    """How many of an epoch's photos a cache with `room` knows, once it is full: of the drawn ones the expected number.

    It keeps the labelled ones first, and of the pseudo-labelled ones always the same, whichever an epoch draws.
    """
    return min(labelled, room) + drawn * min(1, max(0, room - labelled) / max(pseudo, 1))
