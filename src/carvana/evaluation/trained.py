"""Which folds of an experiment are trained, and their checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from carvana.data.folds import fold_name, parse_folds, run_folder
from carvana.errors import InputError, few
from carvana.log import read_json, say
from carvana.models.checkpoint import REPLACED, read_facts
from carvana.prediction.ensemble import Checkpoints
from carvana.provenance import file_digest


def trained_folds(run: Path) -> dict[int, Path]:
    """The best checkpoint of each trained fold; that of all cars is none of them."""
    paths = {path.parent.name.removeprefix("fold"): path for path in run.glob("fold*/best.safetensors")}
    return {int(number): paths[number] for number in sorted(filter(str.isdecimal, paths), key=int)}


def find_checkpoints(runs: Path, experiment: str, fold: str = "all") -> list[Path]:
    """The best checkpoint of each of these folds, as `parse_folds` reads them; all are those that are trained.

    One whose training was interrupted is named. Raises InputError if there is none, or if one of them is not trained.
    """
    run = runs / experiment
    paths = {number: run_folder(run, number) / "best.safetensors" for number in parse_folds(fold, trained_folds(run))}
    if "all" in fold and not trained_folds(run):
        raise InputError(f"{run}: no trained fold there (fold*/best.safetensors); run src/train.py first")
    for number, path in paths.items():
        if not path.exists():
            raise InputError(f"{path}: missing, it is not trained yet; {_remedy(experiment, number)}")
        if is_unfinished(path.parent):
            say(f"note: {path} is of a training that has not ended; {_remedy(experiment, number)}")
    return [*paths.values()]


def _remedy(experiment: str, fold: int | None) -> str:
    return f"run src/train.py {experiment} --fold {fold_name(fold)} --resume"


def is_unfinished(folder: Path) -> bool:
    """Whether a run could be resumed and has not come to its end. Of a checkpoint alone that is not known."""
    if not (folder / "state").exists():
        return False
    end = folder / "end.json"
    return not (end.exists() and read_json(end, "remove it")["finished"])


def unscored_line(run: Path) -> str | None:
    """What is said of a run's network of all cars; None if there is no such network."""
    folder = run_folder(run, None)
    trained = (folder / "best.safetensors").exists()
    return f"{folder}: trained on all cars, so it has no out-of-fold score" if trained else None


@contextmanager
def unchanged(checkpoints: Checkpoints) -> Iterator[None]:
    """Raises InputError if the block ends with other files than it began with: a training went on meanwhile."""
    paths = [path for of_fold in checkpoints.values() for path in of_fold.values()]
    digests = [*map(file_digest, paths)]
    yield
    for path, digest in zip(paths, digests, strict=True):
        if file_digest(path) != digest:
            raise InputError(f"{path}: {REPLACED}")


def common_checkpoints(runs: Path, experiments: Sequence[str], folds: pd.DataFrame) -> Checkpoints:
    """The best checkpoints of the folds that all experiments have trained, by fold.

    Raises InputError if there is no such fold, if a checkpoint has learnt from cars of its fold in this table, or if
    two are of one fold.
    """
    paths, cars = {}, folds.groupby("fold")["car"].agg(list)
    for experiment in experiments:
        for path in find_checkpoints(runs, experiment):
            facts = read_facts(path)
            fold = facts["fold"]
            if fold not in cars.index or (leaking := sorted(set(cars[fold]).intersection(facts["seen_cars"]))):
                reason = "has learnt from " + few(leaking) if fold in cars.index else f"of a fold {fold}"
                raise InputError(f"{path}: trained with another table of folds ({reason}); give that one with --folds")
            if twin := paths.setdefault(fold, {}).get(experiment):
                raise InputError(f"{path}: of fold {fold}, as is {twin}; leave one of them out")
            paths[fold][experiment] = path
    common = {fold: paths[fold] for fold in sorted(paths) if len(paths[fold]) == len(set(experiments))}
    if not common:
        raise InputError(f"{runs}: no fold is trained in all of {', '.join(experiments)}; train one in all of them")
    return common
