"""What a prediction needs as the number of photos grows: `python benchmarks/scale.py unet_lite0`.

`src/make_submission.py` predicts the test photos, repeated under new names, once few and once many of them, each in a
process of its own. Then as many rows as the competition has are written and checked by one core.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from zipfile import ZIP_STORED, ZipFile

import library  # noqa: F401
import typer
from machine import describe_machine, headline

from carvana import command
from carvana.data.images import Photos, open_test, open_train
from carvana.data.rle import rle_encode
from carvana.device import local_device
from carvana.errors import InputError
from carvana.log import progress
from carvana.submission.checker import find_faults
from carvana.submission.csv import write_submission

ANGLES = 16
GROWTH_WANTED = 0.05  # of the peak memory, at most
MINUTES_WANTED = 3, 5  # to write and to check all rows
MASKS = 96  # that the rows repeat
CARS_FILE = command.REPOSITORY / "benchmarks" / "sample_cars.txt"
TEST_CARS_FILE = command.REPOSITORY / "benchmarks" / "sample_test_cars.txt"


def main(
    experiment: Annotated[str, typer.Argument(help="A trained experiment, as under runs/.")],
    tta: command.TtaOption = "none",
    input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS,
    cars: command.CarsOption = TEST_CARS_FILE,
    train_cars: Annotated[Path, typer.Option(help="Training cars whose masks the rows repeat.")] = CARS_FILE,
    backend: command.BackendOption = "torch",
    few: Annotated[int, typer.Option(min=1, help="Photos of the first prediction.")] = 128,
    many: Annotated[int, typer.Option(min=1, help="Photos of the second one.")] = 2048,
    rows: Annotated[int, typer.Option(min=1, help="Rows to write and check.")] = 100_064,
) -> None:
    photos, masks = open_test(input_root, cars_file=cars), open_train(input_root, train_cars)
    options = ["--tta", tta, "--runs", runs, "--backend", backend, "--threshold", 0.5]
    print(f"{headline(describe_machine(local_device()))}; {experiment}, {tta}, {backend}")
    print(f"{'':12}{'peak MiB':>10}{'photos/s':>10}  left on the disk")
    peaks = [predict(photos, count, [experiment, *options]) for count in (few, many)]
    growth = peaks[1] / peaks[0] - 1
    print(f"peak memory grows by {100 * growth:.1f} % (at most {100 * GROWTH_WANTED:g} % wanted: ", end="")
    print(f"{'reached' if growth <= GROWTH_WANTED else 'MISSED'})", flush=True)
    write_and_check(masks, rows)


def predict(photos: Photos, count: int, arguments: list) -> float:
    """Predicts so many photos as a user would, prints a line, and returns the process's peak memory in MiB."""
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "input", Path(folder) / "out"
        repeat_photos(photos, count, data)
        out.mkdir()
        script = command.REPOSITORY / "src" / "make_submission.py"
        arguments = [*arguments, "--cars", data / "cars.txt", "--input", data, "--output", out / "submission.csv.gz"]
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, *map(str, [script, *arguments])], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            raise InputError(f"src/make_submission.py ended with status {os.waitstatus_to_exitcode(status)}")
        left = ", ".join(f"{path.name} {path.stat().st_size / 1000:.0f} kB" for path in sorted(out.rglob("*")))
    peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    print(f"{count:5} photos{peak:>10.0f}{count / seconds:>10.2f}  {left}", flush=True)
    return peak


def repeat_photos(photos: Photos, count: int, folder: Path) -> None:
    """Writes test.zip, sample_submission.csv and cars.txt with so many photos, those of `photos` under new names."""
    folder.mkdir()
    names = new_names(count)
    with ZipFile(folder / "test.zip", "w", ZIP_STORED) as archive:
        for name, image_id in zip(names, itertools.cycle(photos.image_ids), strict=False):
            archive.writestr(f"test/{name}", photos.photo_part.read(photos.name(image_id)))
    (folder / "sample_submission.csv").write_text("img,rle_mask\n" + "".join(f"{name},1 1\n" for name in names))
    (folder / "cars.txt").write_text("".join(f"{car}\n" for car in dict.fromkeys(name[:12] for name in names)))


def new_names(count: int) -> list[str]:
    """Photo names of cars that do not exist."""
    return [f"{number // ANGLES:012x}_{number % ANGLES + 1:02}.jpg" for number in range(count)]


def write_and_check(photos: Photos, count: int) -> None:
    """Encodes and writes real masks, repeated, and checks the file, on one core."""
    names = new_names(count)
    image_ids = photos.image_ids[:: max(1, len(photos.image_ids) // MASKS)][:MASKS]
    masks = [photos.mask(image_id) for image_id in image_ids]

    def rows() -> Iterator[tuple[str, str]]:
        for name, mask in zip(progress(names, "write", unit="row"), itertools.cycle(masks), strict=False):
            yield name, rle_encode(mask)

    with TemporaryDirectory() as folder, one_core():
        path, clock = Path(folder) / "submission.csv.gz", [time.monotonic()]
        write_submission(path, rows())
        clock.append(time.monotonic())
        faults, _ = find_faults(path, names, masks[0].shape)
        clock.append(time.monotonic())
        size = path.stat().st_size / 1e6
    if faults:
        raise InputError(f"the checker refuses what was written: {faults[0]}")
    minutes = [(after - before) / 60 for before, after in itertools.pairwise(clock)]
    print(f"{count} rows of real masks, encoded and compressed ({size:.0f} MB), on one core:")
    for what, took, wanted in zip(("written", "checked"), minutes, MINUTES_WANTED, strict=True):
        verdict = "reached" if took <= wanted else "MISSED"
        print(f"  {what} in {took:.2f} minutes (at most {wanted} wanted: {verdict})")


@contextmanager
def one_core() -> Iterator[None]:
    """Linux: this process, threads it starts included, has one core."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    command.run(main)
