"""Trains folds of an experiment: `python src/train.py unet_lite0 --fold 0`.

Several GPUs or machines: `torchrun --nproc_per_node 2 src/train.py unet_resnet34_1024 --fold 0`.
"""

import time
from typing import Annotated

import typer

from carvana.command import (
    EXPERIMENTS,
    FOLDS,
    INPUT,
    RUNS,
    STOPPED,
    CarsOption,
    FoldsOption,
    InputOption,
    RunsOption,
    run,
)  # fmt: skip
from carvana.device import process_state
from carvana.dry_run import count_photos, dry_run
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.folds import read_folds
from carvana.images import open_train
from carvana.log import say, silence
from carvana.provenance import git_commit
from carvana.run import refuse_conflict, split_fold
from carvana.tracking import check_tracker
from carvana.training import train_fold


def main(
    experiment: Annotated[str, typer.Argument(help="Name of a file in src/experiments, or a path to one.")],
    fold: Annotated[str, typer.Option(help="Number of the fold to hold out, several as 0,1, or all.")] = "all",
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    folds_file: FoldsOption = FOLDS,
    cars: CarsOption = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. optim.lr=3e-4.")
    ] = (),
    name: Annotated[str | None, typer.Option(help="Name of the run, if not the experiment's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue unfinished runs, skip finished ones.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace runs of the same name.")] = False,
    hours: Annotated[
        float, typer.Option(min=0, help="Stop before so many hours are over, with exit status 3; --resume continues.")
    ] = 0,
    tracker: Annotated[
        str, typer.Option(help="Live curves: none, tensorboard (then: tensorboard --logdir runs) or wandb.")
    ] = "none",
    rehearse: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, in memory and time, and train nothing.")
    ] = False,
    untimed: Annotated[
        bool, typer.Option("--no-timing", help="With --dry-run: run no step, only compute; hours are for a T4.")
    ] = False,
) -> None:
    deadline = time.monotonic() + 3600 * hours if hours else float("inf")
    process = process_state()
    if not process.is_main_process:
        silence()
    config = load_experiment(experiment, EXPERIMENTS, list(overrides), name)
    if resume and overwrite:
        raise InputError("--resume and --overwrite: choose one")
    check_tracker(tracker)
    folds = read_folds(folds_file)
    if rehearse:
        for line in dry_run(config, count_photos(input_root, folds, cars), parse_folds(fold, folds), not untimed):
            if process.is_main_process:
                print(line, flush=True)
        return
    photos = open_train(input_root, cars)
    say(f"{len(photos.image_ids)} photos of {len(photos.cars)} of the {len(folds)} cars in {folds_file}")
    say(f"code at commit {git_commit()}")
    chosen = [split_fold(photos, folds, number, runs, config.name) for number in parse_folds(fold, folds)]
    if process.is_main_process:
        for one in chosen:
            refuse_conflict(config, one, resume, overwrite)
        photos.check()
    process.wait_for_everyone()
    for one in chosen:
        say(f"fold {one.number}: training on {len(one.train.cars)} cars, validating on {len(one.val.cars)}")
        finished = train_fold(config, one, resume, overwrite, deadline, tracker)
        if not finished:
            break
    process.destroy_process_group()
    if not finished:
        raise typer.Exit(STOPPED)


def parse_folds(text: str, folds) -> list[int]:
    """`all`, or numbers joined by commas."""
    if text == "all":
        return sorted(set(folds["fold"]))
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--fold {text}: give a number, several as 0,1, or all") from None


if __name__ == "__main__":
    run(main)
