"""By what photos are predicted: the named experiments or an ensemble, their networks, views and threshold."""

from pathlib import Path

from carvana.data.loader import Loading
from carvana.device import Device
from carvana.errors import InputError
from carvana.evaluation.summary import choose_threshold
from carvana.evaluation.trained import find_checkpoints
from carvana.log import say
from carvana.models.checkpoint import Checkpoint, load_checkpoint
from carvana.prediction.ensemble import Choice, read_ensemble
from carvana.prediction.predictor import Predictor, fold_members
from carvana.prediction.tta import parse_views


def choose(
    experiments: list[str] | None, ensemble: Path | None, runs: Path, tta: str | None, threshold: float | None,
    fold: str | None = None,
) -> tuple[Choice, dict[str, list[Checkpoint]]]:  # fmt: skip
    """What the ensemble's file holds, or all named experiments alike; and their networks.

    `fold` is what `find_checkpoints` reads, by default `all`. Raises InputError unless it is one of the two, if a
    checkpoint is missing, or if no threshold is given and none was chosen out-of-fold.
    """
    if bool(experiments) == bool(ensemble):
        raise InputError("give names of experiments, or --ensemble runs/ensemble.json: one of the two")
    if ensemble:
        if (tta, threshold, fold) != (None, None, None):
            advice = "leave out --tta, --threshold and --fold"
            raise InputError(f"--ensemble: {ensemble} holds views and threshold, for its folds; {advice}")
        choice, paths = read_ensemble(ensemble, runs)
        return choice, _load(paths)
    views = parse_views("hflip" if tta is None else tta)
    networks = _load({name: find_checkpoints(runs, name, "all" if fold is None else fold) for name in experiments})
    if threshold is None:
        threshold = choose_threshold(runs, networks, views)
        if any(network.fold is None for folds in networks.values() for network in folds):
            say("note: the network of all cars has no out-of-fold score; its threshold is that of the folds")
    weights = dict.fromkeys(networks, 1 / len(networks))
    return Choice(experiments=weights, views=views, threshold=threshold), networks


def _load(paths: dict[str, list[Path]]) -> dict[str, list[Checkpoint]]:
    return {name: [load_checkpoint(path) for path in folds] for name, folds in paths.items()}


def build_predictor(
    choice: Choice, networks: dict[str, list[Checkpoint]], device: Device, loading: Loading, backend: str,
    each: bool = False,
) -> Predictor:  # fmt: skip
    """The weighted mean of the experiments, in each of them the mean of its folds; with `each` also each of several."""
    mix = []
    for name, folds in networks.items():
        mix += fold_members(folds, choice.views, device, choice.experiments[name], backend)
    return Predictor([mix, *([member] for member in mix if each and len(mix) > 1)], device, loading)
