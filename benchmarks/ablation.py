"""What each choice of an experiment is worth: variants of it, trained one after another for the same minutes.

`python benchmarks/ablation.py --minutes 20`. Base and seeds come first: their spread is the noise that the others'
differences are to be seen against.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import library  # noqa: F401
import typer
from contestants import train_for
from machine import describe_machine, headline
from results import reuse

from carvana import command
from carvana.config import Config, LossConfig
from carvana.data.folds import read_folds
from carvana.data.images import Photos, open_train
from carvana.device import Device, chosen_precision, process_state
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.log import say, write_json
from carvana.models import find_model
from carvana.training.losses import Loss, weighted_sum
from carvana.training.state import Fold, split_fold

VARIANTS = {
    "base": [],
    "seed_1": ["train.seed=1"],
    "seed_2": ["train.seed=2"],
    "full_resolution_skip": ["model.stem_channels=16"],
    "decoder_to_stride_1": ["model.decoder_stride=1", "model.decoder_channels=[128, 64, 48, 32, 16]"],
    "pixel_shuffle": ["model.logit_upsampling=pixel_shuffle"],
    "nothing_frozen": ["model.frozen_parts=0"],
    "linknet": ["model.architecture=linknet", "model.decoder_channels=[256, 128, 64, 32, 16]"],  # it has its own widths
    "bce": ["loss={bce: 1}"],
    "bce_log_dice": ["loss={bce_log_dice: 1}"],
    "border_bce_dice": ["loss={border_bce_dice: 1}"],
    "bce_lovasz": ["loss={bce: 1, lovasz_hinge: 1}"],
    "hard_targets": [],  # masks cut at half coverage: `hard_targets` below
    "no_ema": ["optim.ema_decay=0"],
    "one_size": ["earlier_stages=[]"],
    "whole_photos": ["data.size=[512, 768]", "data.crop=null"],
    "progressive": ["earlier_stages=[{data: {size: [256, 384], crop: null}, train: {epochs: 7}}]", "train.epochs=3"],
    "augmentation_none": ["data.augmentation=none"],
    "augmentation_hflip": ["data.augmentation=hflip"],
    "augmentation_light": ["data.augmentation=light"],
    "augmentation_medium": ["data.augmentation=medium"],
    "augmentation_winner": ["data.augmentation=winner"],
}


def main(
    experiment: Annotated[str, typer.Option(help="The base: a name in src/experiments, or a path.")] = "unet_lite0",
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    folds_file: command.FoldsOption = command.FOLDS,
    fold: Annotated[int, typer.Option(help="The fold whose cars are held out.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.001, help="Of training, for each variant.")] = 10,
    variants: Annotated[str, typer.Option(help="all, or names joined by commas; the base is always one.")] = "all",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all variants.")
    ] = (),
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = command.REPOSITORY
    / "runs"
    / "ablation",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what has a result already.")] = False,
) -> None:
    configs = build_variants(parse_variants(variants), experiment, list(overrides))
    photos, folds = open_train(input_root, cars), read_folds(folds_file)
    results = {}
    for name, config in configs.items():
        split = split_fold(photos, folds, fold, output, name)
        settings = {
            "minutes": minutes,
            "fold": fold,
            "folds_digest": split.digest,
            "cars": photos.cars,
            "config": config.model_dump(mode="json"),
        }
        path = output / f"{name}.json"
        results[name] = reuse(path, settings, overwrite, partial(train_variant, config, split, minutes))
    write_json(output / "results.json", results)
    report(results, photos, fold)
    print(f"written: {output}")


def parse_variants(text: str) -> list[str]:
    """The base, and all others or those that `text` names. Raises InputError for an unknown one."""
    names = list(VARIANTS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(f"--variants {text}: no {unknown[0]}; choose from all, {', '.join(VARIANTS)}")
    return [name for name in VARIANTS if name == "base" or name in names]


def build_variants(names: list[str], experiment: str, overrides: list[str]) -> dict[str, Config]:
    """The variants' configurations, without those that change nothing in this experiment."""
    configs = {
        name: load_experiment(experiment, command.EXPERIMENTS, overrides + VARIANTS[name], name) for name in names
    }
    base = configs["base"]
    for name, config in list(configs.items()):
        find_model(config.model)  # refuses settings that the architecture does not use
        if name not in ("base", "hard_targets") and config.changed(name=base.name) == base:
            say(f"{name}: is the base itself, left out")
            del configs[name]
    return configs


def train_variant(config: Config, fold: Fold, minutes: float) -> dict:
    """The last epoch's scores, on all held-out photos at photo size, and what they took."""
    say(f"{config.name}: {' '.join(VARIANTS[config.name]) or 'the experiment itself'}")
    with hard_targets() if config.name == "hard_targets" else nullcontext():
        planned, records = train_for(config, fold, minutes)
    last = records[-1]
    return {
        "dice": last["dice"],
        "worst": last["worst"],
        "photos": last["photos"],
        "minutes": sum(record["train_seconds"] for record in records) / 60,
        "epochs": len(records),
        "epochs_planned": [stage.train.epochs for stage in planned.stages],
        "machine": describe_machine(Device(process_state().device, chosen_precision(planned.train.precision))),
    }


@contextmanager
def hard_targets() -> Iterator[None]:
    """Training in the block sees masks cut at half coverage, as most published solutions do."""

    def rounded(config: LossConfig) -> Loss:
        loss = weighted_sum(config)
        return lambda logits, masks: loss(logits, masks.round())

    with mock.patch("carvana.training.fold.weighted_sum", rounded):
        yield


def report(results: dict[str, dict], photos: Photos, fold: int) -> None:
    """The table, and the seeds' spread."""
    base = results["base"]
    print(f"{headline(base['machine'])}; {len(photos.cars)} cars, fold {fold} held out ({base['photos']} photos)")
    print(f"{'':22}{'epochs':>9}{'minutes':>9}{'Dice':>9}{'worst':>9}{'to base':>10}")
    for name, result in results.items():
        epochs = f"{result['epochs']}/{sum(result['epochs_planned'])}"
        print(
            f"{name:22}{epochs:>9}{result['minutes']:>9.2f}{result['dice']:>9.5f}{result['worst']:>9.5f}"
            f"{result['dice'] - base['dice']:>+10.5f}"
        )
    seeds = [result["dice"] for name, result in results.items() if name == "base" or name.startswith("seed_")]
    if len(seeds) > 1:
        print(f"noise: {len(seeds)} seeds of the base span {max(seeds) - min(seeds):.5f}; less than that says nothing")
    else:
        print("noise: unknown, as no seed_ variant was trained")


if __name__ == "__main__":
    command.run(main)
