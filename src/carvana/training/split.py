"""What a run is of: the photos of a fold, with the labels to train on as well, and the run's folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from carvana.config import Config
from carvana.data.folds import check_folds, fold_name, folds_digest, run_folder
from carvana.data.images import Photos
from carvana.data.pseudo import MixedPhotos, PseudoPhotos, TrainingPhotos
from carvana.data.soft import SoftenedPhotos, SoftMasks
from carvana.errors import InputError, few
from carvana.models.checkpoint import read_facts


@dataclass(frozen=True)
class Fold:
    """The photos and the folder of one run."""

    number: int | None  # None: trained on all cars
    train: Photos
    val: Photos | None  # None: no validation
    digest: str  # of the whole table of folds
    folder: Path
    pseudo: PseudoPhotos | None = None
    soft: tuple[SoftMasks, ...] = ()  # of `train`

    @property
    def val_cars(self) -> list[str]:
        return self.val.cars if self.val else []

    def __str__(self) -> str:
        return f"fold {fold_name(self.number)}"


def split_fold(photos: Photos, folds: pd.DataFrame, number: int | None, runs: Path, name: str) -> Fold:
    """Cars of fold `number` to validation, all others to training; all cars for None. `folds` is the whole table."""
    present, digest, folder = check_folds(folds, photos.cars), folds_digest(folds), run_folder(runs / name, number)
    if number is None:
        return Fold(number, photos, None, digest, folder)
    is_val = present["fold"] == number
    if not is_val.any():
        raise InputError(f"--fold {number}: the table has folds 0 to {present['fold'].max()}")
    train, val = photos.select(present.loc[~is_val, "car"]), photos.select(present.loc[is_val, "car"])
    return Fold(number, train, val, digest, folder)


def with_labels(fold: Fold, pseudo: PseudoPhotos | None, soft: tuple[SoftMasks, ...] = ()) -> Fold:
    """The fold, to be trained on pseudo-labelled photos too, if any, and on soft masks of its own.

    Raises InputError if their networks have learnt from cars of its validation, if pseudo-labelled ones are of cars
    with true masks, or if soft masks are of none of its photos.
    """
    if pseudo:
        place, remedy = f"data.pseudo: {pseudo.source.path}", f"label with fold {fold.number}'s networks alone"
        _refuse_leak(f"{place}: its networks have", fold, pseudo.source.seen_cars, remedy)
        if twice := sorted({*fold.train.cars, *fold.val_cars}.intersection(pseudo.cars)):
            raise InputError(f"{place}: labels of cars with true masks: {few(twice)}; label other photos")
    for masks in soft:
        place = f"data.soft: {masks.source.path}"
        remedy = "they are for a network of all cars, --fold none"
        _refuse_leak(f"{place}: its networks have", fold, masks.source.seen_cars, remedy)
        if masks.image_ids.keys().isdisjoint(fold.train.image_ids):
            raise InputError(f"{place}: of none of the photos that {fold} trains on; give another file")
    return replace(fold, pseudo=pseudo, soft=soft)


def _refuse_leak(subject: str, fold: Fold, seen_cars: list[str], remedy: str) -> None:
    if leaking := sorted(set(fold.val_cars).intersection(seen_cars)):
        raise InputError(f"{subject} learnt from cars of this fold's validation: {few(leaking)}; {remedy}")


def training_photos(fold: Fold, stage: Config) -> TrainingPhotos:
    """What a stage trains on, those with true masks first."""
    data, photos = stage.data, fold.train
    if (data.pseudo and not fold.pseudo) or (data.soft and not fold.soft):
        raise ValueError("data.pseudo or data.soft is set, but the fold has not been through with_labels")
    if fold.soft and data.soft_share:
        photos = SoftenedPhotos(photos, fold.soft, data.soft_share)
    return MixedPhotos(photos, fold.pseudo) if fold.pseudo and data.pseudo_share else photos


def initial_checkpoint(config: Config, fold: Fold) -> Path | None:
    """This fold's, of the run `train.init_from`.

    Raises InputError if it has learnt from cars of this validation, or is the run's own, which it will replace.
    """
    if config.train.init_from is None:
        return None
    named = fold.folder.parents[1] / config.train.init_from
    run = named if named.exists() else Path(config.train.init_from)
    path = run / fold.folder.name / "best.safetensors"
    if path.parent.resolve() == fold.folder.resolve():
        raise InputError(f"train.init_from: {path} is this run's own, which it replaces; give it another --name")
    _refuse_leak(f"train.init_from: {path} has", fold, read_facts(path)["seen_cars"], "start from another run")
    return path


def seen_cars(config: Config, fold: Fold) -> list[str]:
    """All that this fold's weights learn from: its own cars, and those of the run or labels that it starts from."""
    initial, pseudo = initial_checkpoint(config, fold), fold.pseudo
    earlier = read_facts(initial)["seen_cars"] if initial else ()
    labelled = (*pseudo.cars, *pseudo.source.seen_cars) if pseudo else ()
    return sorted({*fold.train.cars, *earlier, *labelled}.union(*(masks.source.seen_cars for masks in fold.soft)))
