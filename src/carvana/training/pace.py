"""The pace of a run's stages, measured on a few photos by the loop of the real run."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import DataLoader, Subset

from carvana.config import Config
from carvana.data.cache import PhotoCache, items_in
from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.data.pseudo import drawn_photos, kept_photos
from carvana.training.batches import shared_cache, train_loader
from carvana.training.engine import OutOfTime, check_clock, train_one_epoch
from carvana.training.learner import Learner, build_learner
from carvana.training.losses import weighted_sum
from carvana.training.split import Fold
from carvana.training.validation import validate, validated

CARS = 4  # whose photos are enough to measure with
WARM_UP = 2  # steps that pay for page faults and the choice of algorithms
STEPS = (2, 4, 8, 16, 32, 64, 128, 256)  # after so many, measuring ends if it has taken SECONDS
SECONDS = 3.0


class Pace(NamedTuple):
    """Seconds of a stage's epochs: of the first, which decodes the photos, and of each later one."""

    first: float
    later: float

    def seconds(self, epochs: int) -> float:
        return self.first + (epochs - 1) * self.later if epochs else 0.0


def measure_paces(config: Config, fold: Fold, with_validation: bool) -> list[Pace]:
    """Of each stage, by the loop of the real run on a few photos, with random weights. Leaves no trace in the run."""
    learner, paces = build_learner(config, pretrained=False), []
    for stage in config.stages:
        learner.begin_epoch()
        learner.loss = weighted_sum(stage.loss)
        photos, pseudo = len(fold.train.image_ids), len(fold.pseudo.masks.image_ids) if fold.pseudo else 0
        drawn = drawn_photos(photos, pseudo, stage.data.pseudo_share)
        layers = fold.pseudo.masks.layers if drawn else fold.train.layers
        room = items_in(stage.data.cache_gib, Fit.of(stage.data), layers)
        kept = kept_photos(photos, pseudo, drawn, room) / (photos + drawn)
        pace = measure_training(learner, fold.train, photos + drawn, kept)
        validation = measure_validation(learner, fold.val) if with_validation and fold.val else 0.0
        paces.append(Pace(pace.first + validation, pace.later + validation))
        learner.position.epoch += stage.train.epochs
    if config.train.compile:
        torch.compiler.reset()  # it would remember these sizes, and compile for any
    del learner
    clear_device_cache(garbage_collection=True)
    return paces


def measure_training(learner: Learner, photos: Photos, count: int, kept: float) -> Pace:
    """Of `count` photos an epoch, by a few of them, of which the share `kept` is cached."""
    data, few = learner.stage.data, photos.select(photos.cars[:CARS])
    fit, ratio = Fit.of(data), count / len(few.image_ids)
    next(iter(train_loader(learner, PhotoCache(few, fit, 0))))  # starts the server that loaders are forked of
    gib = kept * len(few.image_ids) / items_in(1, fit, few.layers)
    cache = shared_cache(learner, few, data.model_copy(update={"cache_gib": gib}))
    decoded, cached = (seconds_of(load_all, learner, cache) for _ in range(2))
    later = measure_epoch(learner, cache, count)
    return Pace(later + ratio * max(0.0, decoded - cached), later)


def load_all(learner: Learner, photos: PhotoCache) -> None:
    for _ in train_loader(learner, photos):
        pass


def measure_epoch(learner: Learner, few: PhotoCache, count: int) -> float:
    """Seconds of an epoch of `count` photos: the start of the loader and, times their number, a step."""
    batch = learner.stage.train.batch_size * learner.accelerator.num_processes
    started = time.monotonic()
    repeated = [index % len(few) for index in range((WARM_UP + STEPS[-1]) * batch)]
    loader = ClockedLoader(train_loader(learner, Subset(few, repeated)), learner)
    with suppress(OutOfTime):
        train_one_epoch(learner, loader, math.inf)
    warm = loader.times[WARM_UP:]
    return loader.times[0] - started + math.ceil(count / batch) * (warm[-1] - warm[0]) / (len(warm) - 1)


class ClockedLoader:
    """A loader that notes when each batch is taken, and raises OutOfTime when that is enough to know the pace."""

    def __init__(self, loader: DataLoader, learner: Learner):
        self.loader, self.learner, self.times = loader, learner, []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        for number, batch in enumerate(self.loader):
            self.times.append(time.monotonic())
            if number - WARM_UP in STEPS:  # not after each step: it waits for a GPU, and for the other processes
                check_clock(self.learner, self.times[WARM_UP] + SECONDS)
            yield batch


def measure_validation(learner: Learner, photos: Photos) -> float:
    """Seconds of a stage's validation, by one car; twice where the first batch counts: if it is fast, or on a GPU."""
    for parameter in learner.ema.module.parameters():
        nn.init.zeros_(parameter)  # what a hardly trained network gives may be infinite, and would be refused
    few = photos.select(photos.cars[:1])
    seconds = seconds_of(validate, learner, few)
    tunes = learner.accelerator.device.type == "cuda"  # for seconds, once for each shape
    (again,) = broadcast_object_list([tunes or seconds < SECONDS])
    if again:
        seconds = seconds_of(validate, learner, few)
    return seconds * len(validated(learner.stage, photos)) / len(validated(learner.stage, few))


def seconds_of(work: Callable, *arguments: object) -> float:
    started = time.monotonic()
    work(*arguments)
    return time.monotonic() - started
