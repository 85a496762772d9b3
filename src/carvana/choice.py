"""What was chosen out-of-fold for a submission, and the file `ensemble.json` that says so."""

import json
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError, field_validator

from carvana.errors import InputError
from carvana.log import write_json
from carvana.postprocess import PostProcess
from carvana.provenance import file_digest
from carvana.tta import Mean, parse_view

Checkpoints = dict[int, dict[str, Path]]
"""The checkpoint of each experiment, by fold."""


class Choice(BaseModel, frozen=True):
    """Weights of experiments, the same views for all, and what makes a mask of their mean probability."""

    experiments: dict[str, float] = Field(min_length=1)
    views: tuple[str, ...] = ("identity",)
    mean: Mean = "probs"
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
        return tuple(name for name in views if parse_view(name))

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

    Only the folds on which the choice was made are given. Raises InputError, in one line, if the file cannot be used
    or a checkpoint is missing or is not the one that was there then.
    """
    remedy = "run src/choose_ensemble.py again"
    try:
        file = _File.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run src/choose_ensemble.py first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from None
    if file.checkpoints.keys() != file.experiments.keys():
        raise InputError(f"{path}: checkpoints: not of the experiments it weighs; {remedy}")
    found = {}
    for experiment, digests in file.checkpoints.items():
        found[experiment] = [runs / experiment / f"fold{fold}" / "best.safetensors" for fold in sorted(digests)]
        for checkpoint, fold in zip(found[experiment], sorted(digests), strict=True):
            if not checkpoint.exists():
                raise InputError(f"{path}: {checkpoint} is missing; fetch it, or {remedy}")
            if file_digest(checkpoint) != digests[fold]:
                raise InputError(f"{path}: chosen with another {checkpoint} than is there now; {remedy}")
    return Choice(**{name: getattr(file, name) for name in Choice.model_fields}), found
