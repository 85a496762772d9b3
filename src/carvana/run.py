"""What a run is, the folder it lies in, and when that folder must not be touched."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from carvana.augmentations import build_augmentation
from carvana.checkpoint import read_facts
from carvana.config import Config, differences
from carvana.device import chosen_precision, process_state
from carvana.errors import InputError
from carvana.folds import check_folds, folds_digest
from carvana.images import Photos
from carvana.log import read_records, write_json
from carvana.models import find_model
from carvana.state import saved_states


@dataclass(frozen=True)
class Fold:
    """What one run learns from and is validated on, and where its files go."""

    number: int
    train: Photos
    val: Photos
    digest: str
    folder: Path


def split_fold(photos: Photos, folds: pd.DataFrame, number: int, runs: Path, name: str) -> Fold:
    """Cars of fold `number` to validation, all others to training; `folds` is the whole table."""
    present = check_folds(folds, photos.cars)
    is_val = present["fold"] == number
    if not is_val.any():
        raise InputError(f"--fold {number}: the table has folds 0 to {present['fold'].max()}")
    train, val = photos.select(present.loc[~is_val, "car"]), photos.select(present.loc[is_val, "car"])
    return Fold(number, train, val, folds_digest(folds), runs / name / f"fold{number}")


def initial_checkpoint(config: Config, fold: Fold) -> Path | None:
    """The fold's checkpoint of the run that `train.init_from` names, under the same runs/ or as a path.

    Raises InputError if it was trained on cars of this fold's validation.
    """
    if config.train.init_from is None:
        return None
    path = fold.folder.parents[1] / config.train.init_from / fold.folder.name / "best.safetensors"
    facts = read_facts(path)
    if (facts["folds_digest"], facts["fold"]) != (fold.digest, fold.number):
        raise InputError(f"train.init_from: {path} is of another split: it has seen cars of this fold's validation")
    return path


def describe_run(config: Config, fold: Fold) -> dict:
    """What must be the same for a run to be resumed."""
    return {
        "config": config.model_dump(mode="json"),
        "folds_digest": fold.digest,
        "train_cars": fold.train.cars,
        "val_cars": fold.val.cars,
        "precision": chosen_precision(config.train.precision),
        "processes": process_state().num_processes,
    }


def refuse_conflict(config: Config, fold: Fold, resume: bool, overwrite: bool) -> None:
    """Raises InputError if a run lies in the fold's folder that is neither to be overwritten nor can be resumed."""
    for stage in config.stages:
        build_augmentation(stage.data.augmentation)
    find_model(config.model)
    initial_checkpoint(config, fold)
    folder, state = fold.folder, saved_states(fold.folder / "state")
    if overwrite or not (state or (folder / "best.safetensors").exists()):
        return
    if not resume:
        raise InputError(f"{folder}: holds a run; continue it with --resume or replace it with --overwrite")
    try:
        before, now = json.loads((folder / "run.json").read_text()), describe_run(config, fold)
        for run in (before, now):  # a run has its weights once begun: the folder they came from may be elsewhere
            run["config"]["model"].pop("weights", None)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: has no readable run.json ({error}); start anew with --overwrite") from None
    if changed := differences(before, now):
        raise InputError(f"{folder}: cannot be resumed, it was another run: {'; '.join(changed)}")
    if not state and len(read_records(folder / "log.jsonl")) > 1:
        raise InputError(f"{folder}: has no state to resume from; start anew with --overwrite")


def prepare_folder(config: Config, fold: Fold, overwrite: bool) -> None:
    """Removes what is to be overwritten, and what a killed process left of files it was writing."""
    if overwrite:
        shutil.rmtree(fold.folder, ignore_errors=True)
    for leftover in fold.folder.glob(".*.tmp"):
        leftover.unlink()
    write_json(fold.folder / "run.json", describe_run(config, fold))
