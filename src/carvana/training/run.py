"""The record of a run, run.json: what it was begun with, whether it can be resumed, and when it is not touched."""

import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from carvana.command import format_duration
from carvana.config import Config, differences
from carvana.data.augmentations import build_augmentation
from carvana.data.folds import run_folder
from carvana.errors import InputError
from carvana.log import read_json, read_records, say, write_json
from carvana.models import find_model
from carvana.training.split import Fold, initial_checkpoint
from carvana.training.state import saved_states

# What a resumed run may change: the machine and how photos reach it; the encoder's weights are in its state.
LOADING = {"data": {"num_workers", "cache_gib"}}
MEMORY = {"train": {"micro_batch"}}
MACHINE = {"model": {"weights"}, "train": {"precision", "memory_format"} | MEMORY["train"]}
# Compared in `run_facts`, by digest: the file may lie elsewhere.
LABEL_SETTINGS = {"pseudo", "pseudo_input", "pseudo_least", "pseudo_share", "soft", "soft_share"}
LEFT_OUT = {"data": LOADING["data"] | LABEL_SETTINGS, **MACHINE, "earlier_stages": {"__all__": LOADING | MEMORY}}


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
    return read_json(folder / "run.json", "start anew with --overwrite")


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
    if not saved_states(fold.folder / "state"):
        return None
    changed, plan = compare_run(config, fold, budget)
    return None if changed else plan


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


def refuse_conflict(config: Config, fold: Fold, resume: bool, overwrite: bool, budget: Budget | None = None) -> None:
    """Raises InputError if the fold's folder holds a run that is neither to be overwritten nor can be resumed.

    Also if the settings name an augmentation, an architecture or an initial run that does not exist.
    """
    for stage in config.stages:
        build_augmentation(stage.data.augmentation)
    find_model(config.model)
    folder, states = fold.folder, saved_states(fold.folder / "state")
    if overwrite or not (states or (folder / "best.safetensors").exists()):
        initial_checkpoint(config, fold)  # a resumed run does without it
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
