"""Two passes: a fast network finds the car on a small copy of the photo, a fine one sees its box only, enlarged."""

from pathlib import Path

from carvana.checkpoint import Checkpoint, load_checkpoint, read_facts
from carvana.device import Device
from carvana.errors import InputError
from carvana.geometry import Fit, window_around
from carvana.images import Photos
from carvana.inference import fold_member, predict_photos
from carvana.postprocess import drop_parts

THRESHOLD = 0.5
SPECK = 5000  # pixels of 1918 x 1280; less is no part of a car


def box_checkpoint(fit: Fit, folder: Path, folds_digest: str) -> Path:
    """The checkpoint that finds the cars for the run in `folder`: of the same fold of `fit.boxes_from`.

    Raises InputError if it is missing, or if it has learnt from cars that this fold is scored on.
    """
    path = folder.parents[1] / fit.boxes_from / folder.name / "best.safetensors"
    if not path.exists():
        raise InputError(f"{path}: missing, data.boxes_from needs it; train {fit.boxes_from} first, the same folds")
    facts = read_facts(path)
    if facts["folds_digest"] != folds_digest:
        raise InputError(f"{path}: trained with another table of folds than what it is to find the cars for")
    if facts["config"]["data"].get("boxes_from"):
        raise InputError(f"{path}: sees boxes itself; data.boxes_from needs an experiment that sees whole photos")
    return path


def box_checkpoints(checkpoints: list[Checkpoint]) -> list[Path]:
    """Those that find the cars for these folds; none if they see whole photos."""
    return [
        box_checkpoint(fold.config.data.geometry, fold.path.parent, fold.folds_digest)
        for fold in checkpoints
        if fold.config.data.boxes_from
    ]


def find_cars(
    photos: Photos, image_ids: list[str], checkpoints: list[Checkpoint], device: Device, batch_size: int = 4,
    num_workers: int = 2,
) -> Photos:  # fmt: skip
    """The photos, with windows of `image_ids` for the folds of an experiment; as they are if it sees whole photos."""
    paths = box_checkpoints(checkpoints)
    if not paths:
        return photos
    return find_windows(photos, image_ids, checkpoints[0].config.data.geometry, paths, device, batch_size, num_workers)


def find_windows(
    photos: Photos, image_ids: list[str], fit: Fit, paths: list[Path], device: Device, batch_size: int, num_workers: int
) -> Photos:
    """The photos, with the windows in which the mean of the checkpoints in `paths` sees the car."""
    member = fold_member([load_checkpoint(path) for path in paths], ["identity"], device)
    windows = {}
    for image_id, probs, _ in predict_photos(
        [member], photos, image_ids, device, batch_size=batch_size, num_workers=num_workers, description="find cars"
    ):
        mask = drop_parts((probs >= THRESHOLD).cpu().numpy(), SPECK)
        windows[image_id] = window_around(mask, fit.margin)
    return photos.with_windows(fit.boxes_from, windows)
