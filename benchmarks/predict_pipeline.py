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

from carvana.archive import Archive
from carvana.checkpoint import load_checkpoint
from carvana.command import (
    INPUT,
    REPOSITORY,
    RUNS,
    BackendOption,
    BatchOption,
    CarsOption,
    InputOption,
    RunsOption,
    TtaOption,
    WorkersOption,
    run,
)  # fmt: skip
from carvana.dataset import PhotoSet, photo_loader
from carvana.device import Device, local_device
from carvana.images import Photos, open_test
from carvana.inference import NOTHING, Batch, Encoded, Member, encode_batch, fold_member, predict_runs
from carvana.oof import find_checkpoints
from carvana.submission import read_sample, write_submission
from carvana.tta import parse_views

WANTED = 0.9  # of the bare networks' photos per second
THRESHOLD = 0.5


def main(
    experiment: Annotated[str, typer.Argument(help="A trained experiment, as under runs/.")],
    tta: TtaOption = "none",
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = REPOSITORY / "benchmarks" / "sample_test_cars.txt",
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
    backend: BackendOption = "torch",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    views, device, photos = parse_views(tta), local_device(), open_test(input_root, cars_file=cars)
    folds = [load_checkpoint(path) for path in find_checkpoints(runs, experiment)]
    member = fold_member(folds, views, device, backend=backend)
    sample = set(read_sample(Archive(input_root).read_file("sample_submission.csv")))
    image_ids = [image_id for image_id in photos.image_ids if photos.name(image_id) in sample]
    loaded = load_one(member, photos, image_ids, batch_size)
    print(f"{headline(describe_machine(device))}; {experiment}, {len(folds)} folds x {len(views)} views, {backend}")
    time_networks(member, loaded, 2, device)  # kernels are chosen, memory is there
    rates = []
    for number in range(rounds):
        bare = len(loaded) * 8 / time_networks(member, loaded, 8, device)
        with TemporaryDirectory() as folder:
            csv = Path(folder) / "submission.csv.gz"
            work = partial(predict_csv, member, photos, image_ids, device, batch_size, num_workers, csv)
            whole = len(image_ids) / time_call(work)
        rates.append(whole / bare)
        print(f"round {number + 1}: networks alone {bare:.2f} photos a second, zip to CSV {whole:.2f}", flush=True)
    ratio = statistics.median(rates)
    verdict = "reached" if ratio >= WANTED else "MISSED"
    print(f"zip to CSV over networks alone, median: {ratio:.3f} (at least {WANTED} wanted: {verdict})")
    print("what each stage takes by itself, milliseconds a photo; all work side by side:")
    for name, seconds in time_stages(member, photos, image_ids[: 8 * batch_size], device, loaded).items():
        print(f"  {name:32}{1000 * seconds:8.1f}")


def load_one(member: Member, photos: Photos, image_ids: list[str], batch_size: int) -> torch.Tensor:
    """A batch (N, 3, h, w) uint8."""
    some = image_ids[:batch_size]
    _, (images,), _, _ = next(iter(photo_loader(PhotoSet(photos, some, [member.fit], False), batch_size, 0, False)))
    return images


def time_networks(member: Member, images: torch.Tensor, batches: int, device: Device) -> float:
    """Seconds for so many batches through all folds and views, on the device before and after."""
    images = images.to(device.device)
    started = time.monotonic()
    with torch.inference_mode(), device.autocast():
        for _ in range(batches):
            probs = member.predictor(images)
    probs.sum().item()  # a GPU has finished now
    return time.monotonic() - started


def predict_csv(
    member: Member, photos: Photos, image_ids: list[str], device: Device, batch_size: int, num_workers: int, path: Path
) -> None:
    """The CSV of these photos, by the code of src/make_submission.py."""
    predicted = predict_runs([member], photos, image_ids, device, THRESHOLD, NOTHING, batch_size, num_workers)
    write_submission(path, ((photos.name(row.image_id), row.rle) for row in predicted))


def time_stages(
    member: Member, photos: Photos, image_ids: list[str], device: Device, loaded: torch.Tensor
) -> dict[str, float]:
    """Seconds a photo of each stage on one thread or device, nothing beside it."""
    count, size = len(image_ids), photos.image(image_ids[0]).shape[:2]
    with torch.inference_mode(), device.autocast():
        probs = member.predictor(loaded.to(device.device))
    batch = Batch(photos, [""] * len(loaded), {member.fit: probs}, [size] * len(loaded), [None] * len(loaded))
    rows = [(photos.name(image_id), row.rle) for image_id, row in zip(image_ids, encode(batch), strict=False)]

    def read_and_shrink() -> None:
        for image_id in image_ids:
            photos.fitted(image_id, [member.fit])

    def write() -> None:
        with TemporaryDirectory() as folder:
            write_submission(Path(folder) / "submission.csv.gz", rows)

    return {
        "read, decode, shrink": time_call(read_and_shrink) / count,
        "networks": time_networks(member, loaded, 4, device) / 4 / len(loaded),
        "photo size, threshold, runs": time_call(lambda: encode(batch)) / len(loaded),
        "CSV, compressed": time_call(write) / len(rows),
    }


def encode(batch: Batch) -> list[Encoded]:
    return encode_batch(batch, THRESHOLD, NOTHING)


def time_call(function: Callable[[], object]) -> float:
    started = time.monotonic()
    function()
    return time.monotonic() - started


if __name__ == "__main__":
    run(main)
