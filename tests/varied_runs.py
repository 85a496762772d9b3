"""Folds of a single car; checkpoints made in a moment: untrained networks whose masks have edges."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import TINY

from carvana.config import parse_config
from carvana.data.folds import folds_digest, read_folds, run_folder
from carvana.data.geometry import Fit
from carvana.data.images import Photos, open_train
from carvana.data.loader import Loading, to_tensor
from carvana.device import Device
from carvana.evaluation.oof import Unseen
from carvana.evaluation.trained import common_checkpoints
from carvana.models import build_model
from carvana.models.checkpoint import save_checkpoint
from carvana.training.split import Fold, split_fold

CPU = Device(torch.device("cpu"))


def one_car_fold(demo: Path, runs: Path, number: int | None = 0) -> Fold:
    """With a single car on either side; for None without validation."""
    fold = split_fold(open_train(demo / "input"), read_folds(demo / "folds.csv"), number, runs, "tiny")
    first = lambda photos: photos and photos.select(photos.cars[:1])
    return replace(fold, train=first(fold.train), val=first(fold.val))


def write_run(
    runs: Path, name: str, size: list[int], folds: int, photos: Photos, digest: str = "digest", all_cars: bool = False,
    seen_cars: dict[int, list[str]] | None = None,
) -> None:  # fmt: skip
    """The folds of an experiment, none like another: half of the maps of these photos lies above 0.

    With `all_cars` also the network of all cars. `seen_cars` are by fold, none where nothing is given.
    """
    config = parse_config(TINY | {"name": name, "data": {"size": size}}, name)
    fitted = [photos.fitted(image_id, [Fit.of(config.data)])[0][0] for image_id in photos.image_ids[:8]]
    images = torch.stack([to_tensor(image) for image in fitted])
    for seed, fold in enumerate([*range(folds)] + [None] * all_cars):
        torch.manual_seed(seed + sum(size))
        model = build_model(config.model)
        with torch.no_grad():
            for module in model.modules():
                module.momentum = 1.0  # statistics of one pass
            model.train()(images)
            weight, bias = [*model.eval().parameters()][-2:]
            weight *= 4 / model(images).std()
            bias -= model(images).median()
        path = run_folder(runs / name, fold) / "best.safetensors"
        save_checkpoint(
            path, model, config, fold, 1, None if fold is None else 0.5, digest, (seen_cars or {}).get(fold, ())
        )


def write_unseen(runs: Path, demo: Path, **sizes: list[int]) -> Unseen:
    """Experiments of these network sizes, with two folds each, and the photos of two cars, one of each fold."""
    folds = read_folds(demo / "folds.csv")
    photos = open_train(demo / "input").select(folds.groupby("fold")["car"].first())
    for name, size in sizes.items():
        seen_cars = {fold: folds.loc[folds["fold"] != fold, "car"].tolist() for fold in (0, 1)}
        write_run(runs, name, size, 2, photos, folds_digest(folds), seen_cars=seen_cars)
    return Unseen(common_checkpoints(runs, [*sizes], folds), photos, folds, CPU, Loading(8, 0))
