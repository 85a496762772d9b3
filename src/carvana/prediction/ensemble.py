"""The weighted mean of networks, the choice of its weights, views and threshold, and its file `ensemble.json`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator

from carvana.data.folds import run_folder
from carvana.errors import InputError
from carvana.log import write_json
from carvana.prediction.postprocess import PostProcess
from carvana.prediction.tta import parse_view
from carvana.provenance import file_digest

Checkpoints = dict[int, dict[str, Path]]
"""The checkpoint of each experiment, by fold."""


def weighted_mean(maps: Iterable[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of each map times its weight. The maps may be computed one by one: none is kept."""
    return sum(weight * each for weight, each in zip(weights, maps, strict=True))


class Choice(BaseModel, frozen=True):
    """Weights of experiments, the same views for all, and what makes a mask of their mean probability."""

    experiments: dict[str, float] = Field(min_length=1)
    views: tuple[str, ...] = ("identity",)
    threshold: float = Field(0.5, ge=0, le=1)
    postprocess: PostProcess = PostProcess()

    @field_validator("experiments")
    @classmethod
    def _positive(cls, experiments: dict[str, float]) -> dict[str, float]:
        if min(experiments.values()) <= 0:
            raise ValueError("weights must be above 0")
        return experiments

    @field_validator("views")
    @classmethod
    def _known(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        for name in views:
            parse_view(name)
        return views

    def __str__(self) -> str:
        weights = [f"{weight:.2f} {name}" if weight < 1 else name for name, weight in self.experiments.items()]
        mended = [f"{what} < {size}" for what, size in vars(self.postprocess).items() if size]
        return ", ".join([" + ".join(weights), " ".join(self.views), f"threshold {self.threshold:.2f}", *mended])


class _File(Choice, frozen=True):
    checkpoints: dict[str, dict[int, str]]


def write_ensemble(path: Path, choice: Choice, checkpoints: Checkpoints, facts: dict) -> None:
    """Writes the choice, the digests of the chosen experiments' checkpoints and `facts`, whole or not at all."""
    digests = {
        experiment: {str(fold): file_digest(paths[experiment]) for fold, paths in checkpoints.items()}
        for experiment in choice.experiments
    }
    write_json(path, choice.model_dump(mode="json") | facts | {"checkpoints": digests})


def read_ensemble(path: Path, runs: Path) -> tuple[Choice, dict[str, list[Path]]]:
    """The choice in `path`, and its checkpoints under `runs` by experiment, in the order of their folds.

    They are those of the folds on which the choice was made. Raises InputError, in one line, if the file cannot be
    used, or if a checkpoint is missing or was trained anew since.
    """
    remedy = "run src/choose_ensemble.py again"
    try:
        file = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run src/choose_ensemble.py first") from None
    except ValidationError as error:
        first = error.errors()[0]
        fault = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise InputError(f"{path}: {fault}; {remedy}") from None
    if file.checkpoints.keys() != file.experiments.keys():
        raise InputError(f"{path}: checkpoints: not of the experiments it weighs; {remedy}")
    checkpoints = {}
    for experiment, digests in file.checkpoints.items():
        folds = {fold: run_folder(runs / experiment, fold) / "best.safetensors" for fold in sorted(digests)}
        for fold, checkpoint in folds.items():
            if not checkpoint.exists():
                raise InputError(f"{path}: {checkpoint} is missing; fetch it, or {remedy}")
            if file_digest(checkpoint) != digests[fold]:
                raise InputError(f"{path}: chosen with another {checkpoint} than is there now; {remedy}")
        checkpoints[experiment] = list(folds.values())
    return Choice(**{name: getattr(file, name) for name in Choice.model_fields}), checkpoints
