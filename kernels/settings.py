"""The settings of a kernel, checked before anything is sent to Kaggle."""

from collections import Counter
from pathlib import Path

from carvana.command import EXPERIMENTS, FOLDS, parse_duration
from carvana.errors import InputError
from carvana.experiment import load_experiment


def train_settings(
    experiment: str, folds: list[int | str], overrides: list[str], tta: str, hours: float, together: bool,
    budget: str | None = None, labels: str | bool = False,
) -> dict:  # fmt: skip
    """What train/kernel.py reads; `labels`, if any, may be told by a name.

    Raises InputError for a budget that is no time, an unknown view, and a wrong setting.
    """
    view_count(tta)
    if budget:
        parse_duration(budget)
    return {
        "experiment": experiment, "folds": folds, "overrides": overrides,
        "encoder": encoder_of(experiment, overrides), "tta": tta, "hours": hours, "together": together,
        "budget": budget, "labels": labels,
    }  # fmt: skip


def submit_settings(
    experiments: list[str], shard: tuple[int, int], tta: str, threshold: float | None, hours: float,
    fold: str | None = None, labels: str | None = None,
) -> dict:  # fmt: skip
    """What submit/kernel.py reads. Raises InputError for a `fold`, `labels` or `tta` that it could not read."""
    view_count(tta)
    if labels not in (None, "hard", "soft"):
        raise InputError(f"--labels {labels}: give hard or soft")
    if fold is not None:
        from carvana.data import folds  # with pandas and OpenCV, which takes a second

        folds.parse_folds(fold, ())
    return {
        "experiments": experiments, "shard": list(shard), "tta": tta, "threshold": threshold, "hours": hours,
        "fold": fold, "labels": labels,
    }  # fmt: skip


def encoder_of(experiment: str, overrides: list[str]) -> str | None:
    """The timm encoder whose pretrained weights an experiment needs, or None. Raises InputError for a wrong setting."""
    model = load_experiment(str(EXPERIMENTS / f"{experiment}.yaml"), EXPERIMENTS, overrides).model
    return model.encoder if model.pretrained and model.architecture != "vanilla_unet" else None


def parse_folds(text: str, table: Path = FOLDS) -> list[int | str]:
    """As scripts read `--fold`: numbers of the table's, `all` of them, or `none` (all cars), joined by commas."""
    from carvana.data import folds  # with pandas and OpenCV, which takes a second

    numbers = cars_by_fold(table).keys()
    wanted = folds.parse_folds(text, numbers)
    if absent := {*wanted} - {None, *numbers}:
        raise InputError(f"--fold {text}: {table} has no fold {min(absent)}")
    return ["none" if fold is None else fold for fold in wanted]


def cars_by_fold(table: Path) -> Counter:
    """How many cars a table has in each fold."""
    from carvana.data import folds  # with pandas and OpenCV, which takes a second

    return Counter(folds.read_folds(table)["fold"].tolist())


def view_count(tta: str) -> int:
    """Of `--tta`, with the photo as it is."""
    from carvana.prediction import tta as views  # with PyTorch, which takes a second

    return len(views.parse_views(tta))
