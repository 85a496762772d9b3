"""What a run is of: fold, folder, time. What it continues from when killed, and when it must not be touched."""

import json
import shutil
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError

import pandas as pd
from accelerate import Accelerator
from safetensors import SafetensorError

from carvana.command import format_duration
from carvana.config import Config, differences
from carvana.data.augmentations import build_augmentation
from carvana.data.folds import check_folds, fold_name, folds_digest, run_folder
from carvana.data.images import Photos
from carvana.data.pseudo import MixedPhotos, PseudoPhotos, TrainingPhotos
from carvana.data.soft import SoftenedPhotos, SoftMasks
from carvana.errors import InputError, few
from carvana.log import read_records, say, write_json
from carvana.models import find_model
from carvana.models.checkpoint import leaking_cars, read_facts

# What a resumed run may change: the machine and how photos reach it; the encoder's weights are in its state.
LOADING = {"data": {"num_workers", "cache_gib"}}
MACHINE = {"model": {"weights"}, "train": {"precision", "memory_format"}}
# Facts of their own: a file may lie elsewhere.
LABELS = {"pseudo", "pseudo_input", "pseudo_least", "pseudo_share", "soft", "soft_share"}
LEFT_OUT = {"data": LOADING["data"] | LABELS, **MACHINE, "earlier_stages": {"__all__": LOADING}}


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


@dataclass(frozen=True)
class Budget:
    """How long a fold may take. With `training_only` neither measuring nor validation counts, as in benchmarks."""

    seconds: float
    training_only: bool = False

    def spent(self, record: dict) -> float:
        """What an epoch has taken of it."""
        return record["train_seconds"] + (0 if self.training_only else record["val_seconds"])

    def __str__(self) -> str:
        return format_duration(self.seconds) + (" of training" if self.training_only else "")


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


def with_epochs_of_folds(config: Config, run: Path, resume: bool) -> Config:
    """What trains on all cars: with the epochs that it began with if it is resumed, else with those of its folds.

    Of these the median, a stage each, over the folds with as many stages; without any, the experiment's own.
    """
    begun = run_folder(run, None)
    resumed = resume and (begun / "run.json").exists()
    folders = [begun] if resumed else sorted(path.parent for path in run.glob("fold*/run.json"))
    epochs = {folder.name: stage_epochs(read_run(folder)) for folder in folders}
    alike = {name: numbers for name, numbers in epochs.items() if len(numbers) == len(config.stages)}
    if not alike:
        return config
    medians = [max(1, statistics.median_high(numbers)) for numbers in zip(*alike.values(), strict=True)]
    if not resumed:
        say(f"fold none: {' + '.join(map(str, medians))} epochs, the median of {', '.join(alike)}")
    return config.with_epochs(medians)


def with_labels(fold: Fold, pseudo: PseudoPhotos | None, soft: tuple[SoftMasks, ...] = ()) -> Fold:
    """The fold, to be trained on pseudo-labelled photos too, if any, and on soft masks of its own.

    Raises InputError if their networks have learnt from cars of its validation, if pseudo-labelled ones are of cars
    with true masks, or if soft masks are of none of its photos.
    """
    if pseudo:
        place = f"data.pseudo: {pseudo.source.path}"
        _refuse_leak(place, fold, pseudo.source.seen_cars, f"label with fold {fold.number}'s networks alone")
        if twice := sorted({*fold.train.cars, *fold.val_cars}.intersection(pseudo.cars)):
            raise InputError(f"{place}: labels of cars with true masks: {few(twice)}; label other photos")
    for masks in soft:
        place = f"data.soft: {masks.source.path}"
        _refuse_leak(place, fold, masks.source.seen_cars, "they are for a network of all cars, --fold none")
        if masks.image_ids.keys().isdisjoint(fold.train.image_ids):
            raise InputError(f"{place}: of none of the photos that {fold} trains on; give another file")
    return replace(fold, pseudo=pseudo, soft=soft)


def _refuse_leak(place: str, fold: Fold, seen_cars: list[str], remedy: str) -> None:
    if leaking := sorted(set(fold.val_cars).intersection(seen_cars)):
        learnt = f"its networks have learnt from cars of this fold's validation: {few(leaking)}"
        raise InputError(f"{place}: {learnt}; {remedy}")


def training_photos(fold: Fold, stage: Config) -> TrainingPhotos:
    """What a stage trains on, those with true masks first."""
    data, photos = stage.data, fold.train
    if (data.pseudo and not fold.pseudo) or (data.soft and not fold.soft):
        raise ValueError("data.pseudo or data.soft is set, but the fold has not been through with_labels")
    if fold.soft and data.soft_share:
        photos = SoftenedPhotos(photos, fold.soft, data.soft_share)
    return MixedPhotos(photos, fold.pseudo) if fold.pseudo and data.pseudo_share else photos


def initial_checkpoint(config: Config, fold: Fold) -> Path | None:
    """This fold's, of the run `train.init_from`. Raises InputError if it has learnt from cars of this validation."""
    if config.train.init_from is None:
        return None
    path = fold.folder.parents[1] / config.train.init_from / fold.folder.name / "best.safetensors"
    if leaking := leaking_cars(read_facts(path), fold.val_cars, fold.number, fold.digest):
        raise InputError(f"train.init_from: {path} has learnt from cars of this fold's validation: {few(leaking)}")
    return path


def seen_cars(config: Config, fold: Fold) -> list[str]:
    """All that this fold's weights learn from: its own cars, and those of the run or labels that it starts from."""
    initial, pseudo = initial_checkpoint(config, fold), fold.pseudo
    earlier = (read_facts(initial).get("seen_cars") if initial else None) or ()
    labelled = (*pseudo.cars, *pseudo.source.seen_cars) if pseudo else ()
    return sorted({*fold.train.cars, *earlier, *labelled}.union(*(masks.source.seen_cars for masks in fold.soft)))


@dataclass
class Position:
    """How far a run has come, as accelerate keeps it."""

    epoch: int = 0
    step: int = 0
    best_dice: float = -1.0  # of the stage
    micro_batch: int = 0  # of the epoch
    since: int = 0  # epochs of the stage done when their planned number was last changed
    progress: float = 0.0  # of the stage's rate at that time
    precisions: list[str] = field(default_factory=list)  # one after the other

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def save_state(accelerator: Accelerator, folder: Path, epoch: int) -> None:
    """Writes `<folder>/epoch-<n>` under another name, renames it, and only then removes the one before."""
    final, temporary = folder / f"epoch-{epoch:04d}", folder / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
    except (SafetensorError, RuntimeError) as error:  # what safetensors and PyTorch make of a full disk
        raise OSError(f"{temporary}: cannot be written: {error}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        temporary.rename(final)
        for old in saved_states(folder)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def saved_states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(folder.glob("epoch-*"))


def load_state(accelerator: Accelerator, folder: Path) -> bool:
    """Loads the newest whole state; False if there is none. Raises InputError if it is damaged."""
    states = saved_states(folder)
    if states:
        scaler, is_scaled = accelerator.scaler, (states[-1] / "scaler.pt").exists()
        accelerator.scaler = scaler if is_scaled else None  # fp16 begins with a new scale where there was none
        try:
            accelerator.load_state(str(states[-1]))
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            raise InputError(f"{states[-1]}: damaged ({type(error).__name__}); start anew with --overwrite") from error
        accelerator.scaler = scaler
    return bool(states)


def run_facts(config: Config, fold: Fold, budget: Budget | None = None) -> dict:
    """What must be the same for a run to be resumed."""
    data, pseudo, soft = config.data, fold.pseudo, fold.soft
    return {
        "config": config.model_dump(mode="json", exclude=LEFT_OUT),
        "folds_digest": fold.digest, "train_cars": fold.train.cars, "val_cars": fold.val_cars,
        "budget": budget and str(budget),
        "pseudo": pseudo and {
            "digest": pseudo.source.digest, "least": data.pseudo_least, "share": data.pseudo_share
        },
        "soft": {"digests": [masks.source.digest for masks in soft], "share": data.soft_share} if soft else None,
    }  # fmt: skip


def write_run(config: Config, fold: Fold, budget: Budget | None, plan: dict | None) -> None:
    """Writes run.json; `plan` is what `config` has its epochs from, if it was planned for a budget."""
    write_json(fold.folder / "run.json", run_facts(config, fold, budget) | ({"plan": plan} if plan else {}))


def read_run(folder: Path) -> dict:
    """The content of run.json."""
    try:
        return json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: has no readable run.json ({error}); start anew with --overwrite") from None


def stage_epochs(facts: dict) -> list[int]:
    """How many epochs each stage of a run has, by what run.json holds: of a plan's none are left out."""
    config = facts["config"]
    own = [stage["train"]["epochs"] for stage in (*config["earlier_stages"], config)]
    return facts["plan"]["epochs"] if "plan" in facts else own


def compare_run(config: Config, fold: Fold, budget: Budget | None) -> tuple[list[str], dict | None]:
    """In what run.json differs from an experiment, but for the epochs of the plan that it may hold; and that plan."""
    facts = read_run(fold.folder)
    plan = facts.pop("plan", None)
    if plan and len(plan["epochs"]) == len(config.stages):
        config = config.with_epochs(plan["epochs"])
    return differences(facts, run_facts(config, fold, budget)), plan


def kept_plan(config: Config, fold: Fold, budget: Budget) -> dict | None:
    """What the epochs of a run that can be resumed were planned by; None if there is no such run."""
    if not (fold.folder / "run.json").exists():
        return None
    changed, plan = compare_run(config, fold, budget)
    return None if changed else plan


def refuse_conflict(config: Config, fold: Fold, resume: bool, overwrite: bool, budget: Budget | None = None) -> None:
    """Raises InputError if the fold's folder holds a run that is neither to be overwritten nor can be resumed.

    Also if the settings name an augmentation, an architecture or an initial run that does not exist.
    """
    for stage in config.stages:
        build_augmentation(stage.data.augmentation)
    find_model(config.model)
    initial_checkpoint(config, fold)
    folder, states = fold.folder, saved_states(fold.folder / "state")
    if overwrite or not (states or (folder / "best.safetensors").exists()):
        return
    if not resume:
        raise InputError(f"{folder}: holds a run; continue it with --resume or replace it with --overwrite")
    if changed := compare_run(config, fold, budget)[0]:
        remedy = "give its settings, another --name, or --overwrite"
        raise InputError(f"{folder}: cannot be resumed, it was another run: {'; '.join(changed)}: {remedy}")
    if not states and len(read_records(folder / "log.jsonl")) > 1:
        raise InputError(f"{folder}: has no state to resume from; start anew with --overwrite")


def prepare_folder(fold: Fold, overwrite: bool) -> None:
    """Removes what is to be overwritten, and what a killed process left of files it was writing."""
    fold.folder.mkdir(parents=True, exist_ok=True)
    for path in fold.folder.iterdir():  # not the folder itself: it is locked
        if overwrite and path.is_dir():
            shutil.rmtree(path)
        elif overwrite or path.name == "end.json" or path.match(".*.tmp"):
            path.unlink()
