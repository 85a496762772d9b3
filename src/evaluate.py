"""Scores experiments out-of-fold: `python src/evaluate.py unet_lite0 --tta hflip`."""

from typing import Annotated

import typer

from carvana.command import (
    FOLDS,
    INPUT,
    RUNS,
    BackendOption,
    BatchOption,
    CarsOption,
    FoldsOption,
    InputOption,
    RunsOption,
    TtaOption,
    WorkersOption,
    run,
)  # fmt: skip
from carvana.device import local_device
from carvana.folds import folds_digest, read_folds
from carvana.images import open_train
from carvana.oof import find_checkpoints, load_folds, predict_oof, write_oof
from carvana.tta import parse_views


def main(
    experiments: Annotated[list[str], typer.Argument(help="Names of trained experiments, as under runs/.")],
    tta: TtaOption = "hflip",
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    folds_file: FoldsOption = FOLDS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
    backend: BackendOption = "torch",
) -> None:
    views, folds = parse_views(tta), read_folds(folds_file)
    checkpoints = {experiment: find_checkpoints(runs, experiment) for experiment in experiments}
    photos, device = open_train(input_root, cars), local_device()
    for experiment, paths in checkpoints.items():
        folder = runs / experiment
        loaded = load_folds(paths, folds_digest(folds))
        found = predict_oof(loaded, photos, folds, views, device, batch_size, num_workers, backend)
        report(write_oof(folder, found, loaded, folds, views))
        print(f"  written: {folder / 'oof.csv'}, {folder / 'oof.json'}")


def report(oof: dict) -> None:
    print(f"{oof['experiment']}: out-of-fold Dice {oof['dice']:.5f} per image at photo size")
    low, high = oof["interval"]
    print(f"  {oof['photos']} photos of {oof['cars']} cars, views {' + '.join(oof['tta'])}")
    print(f"  95 % of cars drawn anew: {low:.5f} to {high:.5f}")
    for fold, dice in oof["folds"].items():
        print(f"  fold {fold}: {dice:.5f}")
    if oof["folds_missing"]:
        print(f"  not trained yet, so not in the mean: fold {', '.join(map(str, oof['folds_missing']))}")
    print(f"  best threshold {oof['threshold']:.2f} (at 0.50: {oof['dice_at_half']:.5f})")


if __name__ == "__main__":
    run(main)
