"""Trains folds of an experiment: `python src/train.py unet_lite0 --fold 0`.

Several GPUs or machines: `torchrun --nproc_per_node 2 src/train.py unet_resnet34_1024 --fold 0`.
"""

import re
from typing import Annotated

import typer

from carvana import command
from carvana.errors import InputError

EPOCHS_GIVEN = re.compile(r"(earlier_stages|train\.epochs)=|train=.*\bepochs\b")  # by --set


def main(
    experiment: Annotated[str, typer.Argument(help="Name of a file in src/experiments, or a path to one.")],
    fold: Annotated[str, typer.Option(help="The fold to hold out: 0, several as 0,1, all; none: all cars.")] = "all",
    name: Annotated[str | None, typer.Option(help="Name of the run, if not the experiment's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue unfinished runs, skip finished ones.")] = False,
    tracker: Annotated[str, typer.Option(help="Live curves: none or tensorboard.")] = "none",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and train nothing.")] = False,
    untimed: Annotated[bool, typer.Option("--no-timing", help="With --dry-run: only compute, for a T4.")] = False,
    overrides: command.OverridesOption = (), input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS, folds_file: command.FoldsOption = command.FOLDS,
    cars: command.CarsOption = None, overwrite: command.OverwriteOption = False, hours: command.HoursOption = None,
    budget: command.BudgetOption = None,
) -> None:  # fmt: skip
    from carvana.data.folds import parse_folds, read_folds
    from carvana.data.images import open_train
    from carvana.data.pseudo import open_pseudo
    from carvana.data.soft import open_soft
    from carvana.device import join_processes
    from carvana.experiment import load_experiment
    from carvana.log import say
    from carvana.provenance import git_commit
    from carvana.training.budget import plan_fold
    from carvana.training.dry_run import cost_of_training, count_photos
    from carvana.training.fold import train_folds
    from carvana.training.run import Budget, with_epochs_of_folds
    from carvana.training.split import split_fold, with_labels
    from carvana.training.tracking import check_tracker

    deadline, limit = command.end_of(hours), None if budget is None else Budget(command.parse_duration(budget))
    process, config = join_processes(), load_experiment(experiment, command.EXPERIMENTS, list(overrides), name)
    if resume and overwrite:
        raise InputError("--resume and --overwrite: choose one")
    if untimed and not dry_run:
        raise InputError("--no-timing: only with --dry-run")
    check_tracker(tracker)
    folds = read_folds(folds_file)
    numbers = parse_folds(fold, folds["fold"])
    given = limit or any(map(EPOCHS_GIVEN.match, overrides))
    if numbers == [None] and not given:  # beside folds, all have the same settings
        config = with_epochs_of_folds(config, runs / config.name, resume)
    if dry_run:
        for line in cost_of_training(config, count_photos(input_root, folds, cars), numbers, not untimed):
            if process.is_main_process:
                print(line, flush=True)
        if not limit:
            return
    photos = open_train(input_root, cars, config.data.photos)
    say(f"{len(photos.image_ids)} photos of {len(photos.cars)} of the {len(folds)} cars in {folds_file}")
    say(f"code at commit {git_commit()}")
    labels = open_pseudo(config.data, input_root), open_soft(config.data)
    splits = [with_labels(split_fold(photos, folds, number, runs, config.name), *labels) for number in numbers]
    if limit and len(splits) > 1:
        say(f"--budget {limit}: {len(splits)} folds take {command.format_duration(len(splits) * limit.seconds)} in all")
    if dry_run:
        for split in splits:
            plan_fold(config, split, limit)
        return
    finished = train_folds(config, splits, photos, resume, overwrite, deadline, tracker, limit)
    process.destroy_process_group()
    if not finished:
        raise typer.Exit(command.STOPPED)


if __name__ == "__main__":
    command.run(main)
