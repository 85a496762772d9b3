"""Hours that training and prediction take on Kaggle: measured by the selftest, or computed."""

import itertools
import json
import math
from functools import cached_property
from pathlib import Path

from settings import cars_by_fold, encoder_of

from carvana.command import EXPERIMENTS, FOLDS, parse_duration
from carvana.experiment import load_experiment

ANGLES = 16  # photos of a car
TEST_PHOTOS = 100_064
HARMLESS = ("train.epochs=", "data.pseudo=", "data.pseudo_share=")  # settings that change no rate


class Estimate:
    """Hours of an experiment's sessions; each comes with the word for what it is known from.

    Training is `budgeted` if there is a budget. Else, and prediction always, it is `measured` if selftest.json (`file`)
    has the experiment's rates and no setting makes them void, or `computed`.
    """

    def __init__(
        self, file: Path, experiment: str, folds: list[int | str], overrides: list[str], budget: str | None = None
    ):
        self.experiment, self.folds, self.overrides, self.budget = experiment, folds, overrides, budget
        encoder_of(experiment, overrides)  # an unknown experiment is refused with the list of the known ones
        self.rates = measured_rates(file, experiment) if all(map(is_harmless, overrides)) else None

    def training(self, folds: list[int | str], gpus: int = 1) -> tuple[float, str]:
        """Of a session that trains these of the folds at the same time, each on so many GPUs."""
        if self.budget:
            return parse_duration(self.budget) / 3600, "budgeted"
        if self.rates:
            return max(measured_hours(self.rates, self.experiment, folds, self.overrides, gpus)), "measured"
        return max(self._computed[0][fold] for fold in folds) / gpus, "computed"

    def prediction(self, passes: int, gpus: int) -> tuple[float, str]:
        """Of the test set, each photo so many times through a network; masks are not written yet."""
        train, predict, load = self.rates or (None, self._computed[1], math.inf)
        return TEST_PHOTOS / min(gpus * predict / passes, load) / 3600, "measured" if train else "computed"

    @cached_property
    def _computed(self) -> tuple[dict[int | str, float], float]:
        return computed_hours(self.experiment, self.folds, self.overrides)


def is_harmless(override: str) -> bool:
    return override.startswith(HARMLESS)


def measured_rates(file: Path, experiment: str) -> tuple[float, float, float] | None:
    """Photos a second in training and prediction, on one GPU, and from the loader; None if they were not measured."""
    try:
        rates = json.loads(file.read_text())["experiments"][experiment]
        train, predict = max(rates["train_photos_per_second"].values()), rates["predict_photos_per_second"]
    except (OSError, ValueError, KeyError):  # an experiment that did not fit the GPU has no rates
        return None
    return train, predict, rates["loader_photos_per_second"] or math.inf


def measured_hours(
    rates: tuple[float, float, float], experiment: str, folds: list[int | str], overrides: list[str], gpus: int
) -> list[float]:
    """Hours of each of a session's folds, at the measured rates.

    Earlier stages are taken to cost what their pixels cost; the folds share the CPUs that load photos.
    """
    train, predict, load = gpus * rates[0], gpus * rates[1], rates[2] / len(folds)
    last = load_experiment(experiment, EXPERIMENTS, overrides)
    cars = cars_by_fold(FOLDS)  # none in `none`
    hours = dict.fromkeys(folds, 0.0)
    for fold, stage in itertools.product(folds, last.stages):
        size = math.prod(stage.data.size) / math.prod(last.data.size)
        crop = math.prod(stage.data.train_size) / math.prod(last.data.train_size)
        share = 1 + (stage.data.pseudo_share if stage.data.pseudo else 0)
        trained = share * (cars.total() - cars[fold])
        validated = cars[fold] / stage.train.validate_every
        epoch = trained / min(train / crop, load) + validated / min(predict / size, load)
        hours[fold] += stage.train.epochs * ANGLES * epoch / 3600
    return [*hours.values()]


def computed_hours(
    experiment: str, folds: list[int | str], overrides: list[str]
) -> tuple[dict[int | str, float], float]:
    """Hours of each fold on a T4, and photos a second through one network there."""
    from carvana.training import dry_run  # with PyTorch, which takes seconds
    from carvana.training.footprint import Footprint

    hours, cars = dict.fromkeys(folds, 0.0), cars_by_fold(FOLDS)
    for stage in load_experiment(experiment, EXPERIMENTS, overrides).stages:
        footprint = Footprint(stage)
        for fold in folds:
            photos = ANGLES * (cars.total() - cars[fold]), ANGLES * cars[fold]  # none in `none`
            hours[fold] += dry_run.t4_seconds(footprint, *photos) / 3600
    return hours, dry_run.t4_rate(footprint)


def verdict(hours: float, left: float, weekly: float) -> str:
    """Whether so many hours are within those left this week, or within a week's, or how many weeks they take."""
    if left == math.inf:
        return ""
    if hours <= left:
        return ": enough"
    if hours <= weekly:
        return ": not enough, but a whole week's hours are"
    weeks = 1 + math.ceil((hours - left) / weekly) if weekly else math.inf
    return f": not enough, it takes {weeks} weeks, this one included"
