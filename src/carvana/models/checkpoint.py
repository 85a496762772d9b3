"""One `.safetensors` file per fold: the weights and, in its metadata, all that is needed to use and to trust them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from carvana.config import Config, parse_config
from carvana.errors import InputError
from carvana.log import replacing
from carvana.models import Segmenter, build_model
from carvana.provenance import file_digest, git_commit, versions

REPLACED = "its training went on meanwhile; give the command again when that has ended"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in eval mode and on the CPU, with the metadata of its file: `config` as far as needed."""

    path: Path
    model: Segmenter
    config: Config
    fold: int | None  # None: of all cars, without validation
    digest: str  # of the file

    def __reduce__(self) -> tuple:
        """Another process gets the path: weights would go through shared memory, of which containers have little."""
        return load_checkpoint, (self.path, self.digest)


def save_checkpoint(
    path: Path, model: Segmenter, config: Config, fold: int | None, epoch: int, dice: float | None, folds_digest: str,
    seen_cars: Sequence[str], precisions: Sequence[str] = (),
) -> None:  # fmt: skip
    """Writes the file whole or not at all. `dice` is of the validated photos, at photo size, without TTA.

    `seen_cars` are all that the weights have learnt from; `precisions` those that it was trained in, one after the
    other.
    """
    facts = {
        "fold": fold, "epoch": epoch, "dice": dice, "folds_digest": folds_digest, "seen_cars": seen_cars,
        "precisions": precisions, "commit": git_commit(), "versions": versions(),
        "config": config.model_dump(mode="json"),
    }  # fmt: skip
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={key: json.dumps(value) for key, value in facts.items()})
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error


def read_facts(path: Path) -> dict:
    """The metadata of a checkpoint, without its weights. Raises InputError if the file is no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); train or fetch it again") from None
    if None in map(facts.get, ("config", "folds_digest", "seen_cars")):
        raise InputError(f"{path}: weights without this project's metadata; give a best.safetensors of src/train.py")
    return facts


def all_seen_cars(paths: Iterable[Path]) -> list[str]:
    """All that any of these checkpoints has learnt from, sorted."""
    return sorted(set().union(*(read_facts(path)["seen_cars"] for path in paths)))


def load_checkpoint(path: Path, digest: str | None = None) -> Checkpoint:
    """Rebuilds the model from the file alone.

    Raises InputError if the file cannot be used, is not the one with that digest, or is replaced while it is read.
    """
    facts, digest = read_facts(path), digest or file_digest(path)
    config = parse_config(needed_settings(facts["config"]), str(path))
    model = build_model(config.model, pretrained=False)
    try:
        model.load_state_dict(tensors := load_file(path))
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit its own config: {str(error).splitlines()[-1]}") from None
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"{path}: {bad[0]} is not finite; train this fold again")
    if (read_facts(path), file_digest(path)) != (facts, digest):
        raise InputError(f"{path}: {REPLACED}")
    return Checkpoint(path, model.eval(), config, facts["fold"], digest)


def needed_settings(settings: dict) -> dict:
    """What prediction needs of a stored configuration; the rest may hold what another version called its settings."""
    data = {key: settings["data"][key] for key in ("size", "fit", "photos")}
    return {"name": settings["name"], "model": settings["model"], "data": data}


def photos_of(paths: Iterable[Path]) -> str:
    """`data.photos` of these checkpoints. Raises InputError if they differ: a photo is loaded once for all."""
    by_quality = {read_facts(path)["config"]["data"]["photos"]: path for path in paths}
    if len(by_quality) > 1:
        listed = ", ".join(f"{path} on {quality}" for quality, path in by_quality.items())
        raise InputError(f"trained on different photos: {listed}; leave one out, or train both with one data.photos")
    return next(iter(by_quality))
