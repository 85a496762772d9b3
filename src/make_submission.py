"""Predicts the test photos and writes the CSV for Kaggle: all folds of all named experiments, averaged.

`python src/make_submission.py unet_lite0 --tta hflip --output submissions/unet_lite0.csv.gz`
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from carvana.archive import Archive
from carvana.checkpoint import Checkpoint, load_checkpoint
from carvana.command import INPUT, RUNS, BatchOption, CarsOption, InputOption, RunsOption, TtaOption, WorkersOption, run
from carvana.device import Device, local_device
from carvana.ensemble import Ensemble
from carvana.errors import InputError, few
from carvana.faults import find_faults
from carvana.geometry import Size
from carvana.images import Photos, open_test
from carvana.inference import Member, fold_model, predict_photos
from carvana.log import say
from carvana.oof import choose_threshold, find_checkpoints
from carvana.rle import rle_encode
from carvana.submission import read_sample, write_submission
from carvana.tta import parse_views


def main(
    experiments: Annotated[list[str], typer.Argument(help="Names of trained experiments, as under runs/.")],
    output: Annotated[Path, typer.Option(help="The CSV: .csv, .csv.gz or .zip.")],
    tta: TtaOption = "hflip",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability of a car pixel; by default oof.json's.")
    ] = None,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
) -> None:
    views, device = parse_views(tta), local_device()
    photos = open_test(input_root, cars_file=cars)
    names = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    image_ids = match_sample(names, photos, whole=cars is None)
    names = [photos.name(image_id) for image_id in image_ids]
    checkpoints = {
        experiment: [load_checkpoint(path) for path in find_checkpoints(runs, experiment)] for experiment in experiments
    }
    if threshold is None:
        threshold = choose_threshold(runs, checkpoints, views)
    members = [ensemble_folds(folds, views, device) for folds in checkpoints.values()]
    networks = sum(map(len, checkpoints.values()))
    say(f"{len(names)} photos, {networks} networks x {len(views)} views, threshold {threshold:.2f}, {device.device}")
    started = time.monotonic()
    predictions = predict_photos(members, photos, image_ids, device, batch_size=batch_size, num_workers=num_workers)
    masks = ((photos.name(p.image_id), (p.probs >= threshold).cpu().numpy()) for p in predictions)
    size = write_masks(output, masks)
    seconds = time.monotonic() - started
    faults, warnings = find_faults(output, names, size)
    for line in warnings + faults:
        say(line)
    if faults:
        raise InputError(f"{output}: failed its own check; do not upload it")
    print(
        f"{output}: {len(names)} rows, checked; {seconds:.0f} s, {len(names) / seconds:.2f} photos a second, "
        f"peak memory {peak_memory_mib()} MiB without loaders"
    )


def match_sample(names: list[str], photos: Photos, whole: bool) -> list[str]:
    """The image ids of the sample's rows, in its order; unless `whole`, only of those that have a photo.

    Raises InputError if a photo is not there, or none is.
    """
    image_ids = {photos.name(image_id): image_id for image_id in photos.image_ids}
    missing, path = [name for name in names if name not in image_ids], photos.photo_part.path
    if missing and (whole or len(missing) == len(names)):
        raise InputError(f"{path}: lacks {len(missing)} of the {len(names)} photos of the sample: {few(missing)}")
    return [image_ids[name] for name in names if name in image_ids]


def ensemble_folds(folds: list[Checkpoint], views: list[str], device: Device) -> Member:
    """The mean of an experiment's folds. Experiments weigh the same, however many folds they have."""
    fits = {fold.config.data.geometry for fold in folds}
    if len(fits) > 1:
        raise InputError(f"{folds[0].path.parents[1]}: its folds were trained at different sizes; train them alike")
    return Member(fits.pop(), Ensemble([fold_model(fold, views, device) for fold in folds]))


def write_masks(output: Path, masks: Iterator[tuple[str, np.ndarray]]) -> Size:
    """Encodes and writes masks as they come; returns their size, which all must share."""
    sizes = set()

    def rows() -> Iterator[tuple[str, str]]:
        for name, mask in masks:
            sizes.add(mask.shape)
            if len(sizes) > 1:
                raise InputError(f"{name}: photos of different sizes in one submission: {sorted(sizes)}")
            yield name, rle_encode(mask)

    write_submission(output, rows())
    return sizes.pop()


def peak_memory_mib() -> int:
    """Largest resident set of this process, without its loaders. macOS counts bytes, Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)


if __name__ == "__main__":
    run(main)
