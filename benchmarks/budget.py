"""As many epochs as fit into a training time. They must be known before, for the project's rate depends on them."""

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import library  # noqa: F401
from torch.utils.data import DataLoader

from carvana.config import Config, parse_config
from carvana.data.cache import PhotoCache
from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.errors import InputError
from carvana.log import read_records, say
from carvana.training.engine import train_one_epoch
from carvana.training.fold import train_fold, train_loader
from carvana.training.learner import Learner, build_learner
from carvana.training.state import Fold
from carvana.training.validation import validate

CALIBRATION_CARS = 4
PLANNED = 0.97  # of the time: the rest is for a machine that slows down
ALLOWED = 1.1  # of the time: a run is stopped there


class Pace(NamedTuple):
    """Seconds of a stage's epochs on all of a fold's photos."""

    first: float  # decodes the photos and fills the cache
    later: float
    validation: float


def train_for(config: Config, fold: Fold, minutes: float) -> tuple[Config, list[dict]]:
    """Trains anew for as many whole epochs as fit; returns the configuration with their number, and the log.

    `minutes` are of training: neither calibration nor validation counts. Raises InputError if there is no time for one
    epoch of each stage.
    """
    paces = [measure_pace(stage, fold) for stage in config.stages]
    planned = plan_epochs(config, paces, minutes)
    epochs = [stage.train.epochs for stage in planned.stages]
    validation = sum(number * pace.validation for number, pace in zip(epochs, paces, strict=True))
    say(
        f"{config.name}: {' + '.join(map(str, epochs))} epochs of about "
        f"{' + '.join(f'{pace.later:.1f}' for pace in paces)} s for {minutes:g} minutes of training"
    )
    train_fold(planned, fold, overwrite=True, deadline=time.monotonic() + ALLOWED * (60 * minutes + validation))
    if records := read_records(fold.folder / "log.jsonl"):
        return planned, records
    raise InputError(f"--minutes {minutes:g}: {config.name} was stopped before the end of its first epoch")


def measure_pace(stage: Config, fold: Fold) -> Pace:
    """Trains and validates on a few cars with the loop of the real run."""
    learner = build_learner(stage.changed(earlier_stages=()))
    train, val = few_cars(fold.train), few_cars(fold.val)
    photos = PhotoCache(train, Fit.of(stage.data), stage.data.cache_gib)
    share = len(fold.train.image_ids) / len(train.image_ids)
    first, later = (measure_epoch(learner, photos, share) for _ in ("decoded", "from the cache"))
    started = time.monotonic()
    validate(learner, val)
    validation = time.monotonic() - started
    return Pace(first, later, validation * len(fold.val.image_ids) / len(val.image_ids))


def measure_epoch(learner: Learner, photos: PhotoCache, share: float) -> float:
    """Seconds of an epoch of `share` times as many photos: the loader starts once, whatever their number."""
    started, loader = time.monotonic(), StartedLoader(train_loader(learner, photos))
    train_one_epoch(learner, loader, float("inf"))
    return loader.started - started + share * (time.monotonic() - loader.started)


class StartedLoader:
    """A loader that notes when its first batch is there."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        for number, batch in enumerate(self.loader):
            if number == 0:
                self.started = time.monotonic()
            yield batch


def few_cars(photos: Photos) -> Photos:
    return photos.select(photos.cars[:CALIBRATION_CARS])


def plan_epochs(config: Config, paces: list[Pace], minutes: float) -> Config:
    """The configuration with the most epochs that fit. Raises InputError if one of each stage does not.

    What the stages' shares leave of the time goes to whole epochs of the last stage, then of those before it.
    """
    available = PLANNED * 60 * minutes

    def seconds(epochs: list[int]) -> float:
        return sum(pace.first + (number - 1) * pace.later for number, pace in zip(epochs, paces, strict=True))

    shares = [stage.train.epochs / config.epochs for stage in config.stages]
    plans = ([max(1, round(total * share)) for share in shares] for total in itertools.count(1))
    fitting = list(itertools.takewhile(lambda epochs: seconds(epochs) <= available, plans))
    if not fitting:
        needed = seconds([1] * len(paces)) / PLANNED / 60
        raise InputError(f"--minutes {minutes:g}: {config.name} needs {needed:.2f} here at least")
    epochs = fitting[-1]
    for stage in reversed(range(len(paces))):
        epochs[stage] += int((available - seconds(epochs)) // paces[stage].later)
    return with_epochs(config, epochs)


def with_epochs(config: Config, epochs: list[int]) -> Config:
    """The configuration with this number of epochs in each stage, the earlier ones first."""
    settings = config.model_dump(mode="json")
    for stage, number in zip((*settings["earlier_stages"], settings), epochs, strict=True):
        stage["train"]["epochs"] = number
    return parse_config(settings, config.name)
