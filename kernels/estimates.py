"""Hours that training takes on Kaggle: measured by the selftest, or computed."""

import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

from outputs import script_output
from settings import encoder_of

from carvana.command import EXPERIMENTS, FOLDS
from carvana.experiment import load_experiment

ANGLES = 16  # photos of a car


def measured_hours(file: Path, experiment: str, folds: list[int | str], overrides: list[str]) -> dict[int | str, float]:
    """Hours of each of a session's folds, at the rates in selftest.json; none if it does not hold what is trained.

    Earlier stages are taken to cost what their pixels cost; the folds share the CPUs that load photos.
    """
    try:
        rates = json.loads(file.read_text())["experiments"][experiment]
        train, predict = max(rates["train_photos_per_second"].values()), rates["predict_photos_per_second"]
    except (OSError, ValueError, KeyError):  # an experiment that did not fit the GPU has no rates
        return {}
    if not all(override.startswith("train.epochs=") for override in overrides):
        return {}
    load = (rates["loader_photos_per_second"] or math.inf) / len(folds)
    last = load_experiment(experiment, EXPERIMENTS, overrides)
    cars = Counter(int(line.rpartition(",")[2]) for line in FOLDS.read_text().splitlines()[1:])  # by fold; 0 of `none`
    hours = dict.fromkeys(folds, 0.0)
    for fold, stage in itertools.product(folds, last.stages):
        size = math.prod(stage.data.size) / math.prod(last.data.size)
        crop = math.prod(stage.data.crop or stage.data.size) / math.prod(last.data.crop or last.data.size)
        epoch = (cars.total() - cars[fold]) / min(train / crop, load) + cars[fold] / min(predict / size, load)
        hours[fold] += stage.train.epochs * ANGLES * epoch / 3600
    return hours


def computed_hours(experiment: str, folds: list[int | str], overrides: list[str]) -> dict[int | str, float]:
    """Hours of each fold on a T4, as src/train.py computes them."""
    encoder_of(experiment, overrides)  # an unknown experiment is refused with the list of the known ones
    options = [part for override in overrides for part in ("--set", override)]
    options += ["--fold", ",".join(map(str, folds)), "--dry-run", "--no-timing"]
    lines = script_output(experiment, "train.py", experiment, *options)
    hours = dict(re.findall(r"fold (\w+) on a T4: ([\d.]+) hours", lines))
    return {fold: float(hours[str(fold)]) for fold in folds}
