"""Pseudo-labels (Lee, 2013): photos without true masks, with the masks that networks gave them, to train on as well."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from carvana.config import DataConfig
from carvana.data.cache import PhotoCache
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos, car_of, open_test
from carvana.data.labels import REMEDY, read_labels
from carvana.data.rle import rle_decode
from carvana.errors import InputError, few
from carvana.log import say
from carvana.provenance import file_digest


@dataclass(frozen=True)
class PseudoPhotos:
    """Photos with the labels that networks gave them."""

    path: Path  # of the labels
    photos: Photos
    labels: dict[str, tuple[str, str]]  # runs of the mask, and of what is disputed, by image_id
    size: Size  # of the photos
    digest: str  # of the labels' file
    seen_cars: list[str]  # all that the networks have learnt from

    @property
    def cars(self) -> list[str]:
        """The cars photographed, sorted."""
        return sorted(set(map(car_of, self.labels)))

    def layers(self, image_id: str) -> list[np.ndarray]:
        """Where the car is, and where the networks did not agree on it: bool (height, width) each."""
        return [rle_decode(rle, self.size) for rle in self.labels[image_id]]

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """As `Photos.fitted`. Raises InputError if the photo is of another size than its label."""
        images, size = self.photos.fitted(image_id, fits)
        if size != self.size:
            raise InputError(f"{self.path}: labels of {self.size}, but {self.photos.name(image_id)} is of {size}")
        return images, size


def open_pseudo(data: DataConfig, input_root: Path) -> PseudoPhotos | None:
    """What `data.pseudo` names, without the unsure photos, and says how many these are; None if it names nothing.

    Raises InputError if the labels are not as they were written or of photos that are not there, if none is sure
    enough, or if it is not known which cars their networks have learnt from.
    """
    if data.pseudo is None:
        return None
    path = Path(data.pseudo)
    digest, seen_cars, size = _read_manifest(path)
    labels = _read_sure(path, data.pseudo_least)
    photos = open_test(Path(data.pseudo_input or input_root), quality=data.photos)
    if missing := sorted(labels.keys() - set(photos.image_ids)):
        where = photos.photo_part.path
        raise InputError(f"data.pseudo: {where}: lacks {few(missing)} of {path}; set data.pseudo_input to their folder")
    return PseudoPhotos(path, photos, labels, size, digest, seen_cars)


def _read_manifest(path: Path) -> tuple[str, list[str], Size]:
    """Digest of the labels, what their networks have learnt from, size of the photos."""
    try:
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())
        digest, seen_cars, size = facts["digest"], facts["seen_cars"], tuple(facts["size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"data.pseudo: {path}.json: missing, or not beside labels ({error}); {REMEDY}") from None
    if not path.is_file() or file_digest(path) != digest:
        raise InputError(f"data.pseudo: {path}: missing, cut or not the file of its manifest; fetch it, or {REMEDY}")
    if seen_cars is None:
        unknown = "which cars its networks have learnt from is not known"
        raise InputError(f"data.pseudo: {path}: {unknown}; train them with this version, and label again")
    return digest, seen_cars, size


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
    """Photos with true masks, then pseudo-labelled ones; a mask has two layers: the car, and what is disputed."""

    layers = (2,)

    def __init__(self, photos: Photos, pseudo: PseudoPhotos):
        self.photos, self.pseudo = photos, pseudo
        self.image_ids = [*photos.image_ids, *pseudo.labels]

    def mask(self, image_id: str) -> np.ndarray:
        """bool (height, width, 2)."""
        if image_id in self.pseudo.labels:
            return np.dstack(self.pseudo.layers(image_id))
        mask = self.photos.mask(image_id)
        return np.dstack([mask, np.zeros_like(mask)])

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """As `Photos.fitted`."""
        return (self.pseudo if image_id in self.pseudo.labels else self.photos).fitted(image_id, fits)


class EpochPhotos:
    """The photos of one epoch: the first `labelled` ones, and of the others as many as the share asks for, drawn anew.

    The draw depends on seed and epoch alone. If there are fewer than asked for, all are taken, once.
    """

    def __init__(self, source: PhotoCache, labelled: int, share: float, seed: int, epoch: int):
        pseudo = len(source) - labelled
        drawn = np.random.default_rng([seed, epoch]).permutation(pseudo)[: drawn_photos(labelled, pseudo, share)]
        self.source, self.places = source, [*range(labelled), *(labelled + drawn).tolist()]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.source[self.places[index]]


def drawn_photos(labelled: int, pseudo: int, share: float) -> int:
    """How many of the `pseudo` photos an epoch has beside its `labelled` ones."""
    return min(pseudo, round(share * labelled))
