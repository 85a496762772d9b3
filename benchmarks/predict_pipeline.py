"""The whole prediction, from zip to CSV, against the bare networks: `python benchmarks/predict_pipeline.py unet_lite0`.

Each round times the networks alone on resident batches, with the same folds, views, precision and batch size, and
`src/make_submission.py` on the test photos, so that a machine that slows down slows both.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import library  # noqa: F401
import torch
import typer
from machine import describe_machine, headline

from carvana import command
from carvana.data.archive import Archive
from carvana.data.geometry import Fit
from carvana.data.images import Photos, open_test
from carvana.data.loader import Loading, load_photos
from carvana.device import Device, local_device
from carvana.evaluation.trained import find_checkpoints
from carvana.models.checkpoint import load_checkpoint, photos_of
from carvana.prediction.encoding import Batch, encode_batch
from carvana.prediction.ensemble import weighted_mean
from carvana.prediction.postprocess import AS_IT_IS
from carvana.prediction.predictor import Mix, Predictor, fold_members
from carvana.prediction.tta import parse_views
from carvana.submission.csv import read_sample, write_submission

WANTED = 0.9  # of the bare networks' photos per second
THRESHOLD = 0.5


def main(
    experiment: Annotated[str, typer.Argument(help="A trained experiment, as under runs/.")],
    tta: command.TtaOption = "none",
    input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_test_cars.txt",
    batch_size: command.BatchOption = 4,
    num_workers: command.WorkersOption = 2,
    backend: command.BackendOption = "torch",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    paths = find_checkpoints(runs, experiment)
    views, device, photos = parse_views(tta), local_device(), open_test(input_root, cars, photos_of(paths))
    folds = [load_checkpoint(path) for path in paths]
    mix = fold_members(folds, views, device, backend=backend)
    predictor = Predictor([mix], device, Loading(batch_size, num_workers))
    sample = set(read_sample(Archive(input_root).read_file("sample_submission.csv")))
    image_ids = [image_id for image_id in photos.image_ids if photos.name(image_id) in sample]
    images = load_batch(mix[0].fit, photos, image_ids[:batch_size], device)
    print(f"{headline(describe_machine(device))}; {experiment}, {len(folds)} folds x {len(views)} views, {backend}")
    time_networks(mix, images, 2, device)  # kernels are chosen, memory is there
    ratios = []
    for number in range(rounds):
        bare = len(images) * 8 / time_networks(mix, images, 8, device)
        with TemporaryDirectory() as folder:
            work = partial(predict_csv, predictor, photos, image_ids, Path(folder) / "submission.csv.gz")
            whole = len(image_ids) / time_call(work)
        ratios.append(whole / bare)
        print(f"round {number + 1}: networks alone {bare:.2f} photos a second, zip to CSV {whole:.2f}", flush=True)
    ratio = statistics.median(ratios)
    verdict = "reached" if ratio >= WANTED else "MISSED"
    print(f"zip to CSV over networks alone, median: {ratio:.3f} (at least {WANTED} wanted: {verdict})")
    print("what each stage takes by itself, milliseconds a photo; all work side by side:")
    for name, seconds in time_stages(mix, photos, image_ids[: 8 * batch_size], device, images).items():
        print(f"  {name:32}{1000 * seconds:8.1f}")


def load_batch(fit: Fit, photos: Photos, image_ids: list[str], device: Device) -> torch.Tensor:
    """(N, 3, h, w) uint8 on the device."""
    return next(load_photos(photos, image_ids, [fit], device.device, Loading(len(image_ids), 0))).images[fit]


def run_networks(mix: Mix, images: torch.Tensor) -> torch.Tensor:
    """The weighted mean of a mix whose members see photos alike: (N, 1, h, w)."""
    return weighted_mean((member.network(images) for member in mix), [member.weight for member in mix])


def time_networks(mix: Mix, images: torch.Tensor, batches: int, device: Device) -> float:
    """Seconds for so many batches through all folds and views, on the device before and after."""
    torch.backends.cudnn.benchmark = True  # as in prediction
    started = time.monotonic()
    with torch.inference_mode(), device.autocast():
        for _ in range(batches):
            probs = run_networks(mix, images)
    probs.sum().item()  # a GPU has finished now
    return time.monotonic() - started


def predict_csv(predictor: Predictor, photos: Photos, image_ids: list[str], path: Path) -> None:
    """The CSV of these photos, by the code of src/make_submission.py."""
    encoded = predictor.encode(photos, image_ids, THRESHOLD)
    write_submission(path, ((photos.name(row.image_id), row.rle) for row in encoded))


def time_stages(
    mix: Mix, photos: Photos, image_ids: list[str], device: Device, images: torch.Tensor
) -> dict[str, float]:
    """Seconds a photo of each stage on one thread or device, nothing beside it."""
    fit, count, size = mix[0].fit, len(image_ids), photos.image(image_ids[0]).shape[:2]
    with torch.inference_mode(), device.autocast():
        probs = run_networks(mix, images)
    batch = Batch([""] * len(images), [{fit: probs}], [size] * len(images), [None] * len(images), {fit: images})
    encode = partial(encode_batch, batch, THRESHOLD, AS_IT_IS)
    rows = [(photos.name(image_id), row.rle) for image_id, row in zip(image_ids, encode(), strict=False)]

    def read_and_shrink() -> None:
        for image_id in image_ids:
            photos.fitted(image_id, [fit])

    def write() -> None:
        with TemporaryDirectory() as folder:
            write_submission(Path(folder) / "submission.csv.gz", rows)

    return {
        "read, decode, shrink": time_call(read_and_shrink) / count,
        "networks": time_networks(mix, images, 4, device) / 4 / len(images),
        "photo size, threshold, runs": time_call(encode) / len(images),
        "CSV, compressed": time_call(write) / len(rows),
    }


def time_call(function: Callable[[], object]) -> float:
    started = time.monotonic()
    function()
    return time.monotonic() - started


if __name__ == "__main__":
    command.run(main)
