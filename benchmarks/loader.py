"""Whether four cores load photos as fast as one or two T4 train on them: `python benchmarks/loader.py`.

Each stage of the shipped experiments, by training's own loader with a worker process on each core. What a T4 trains on
is computed, not measured. Below: what decoding at half size gives.
"""

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import library  # noqa: F401
import numpy as np
import torch
import typer
from limits import call_rate, train_flops
from machine import processor

from carvana import command
from carvana.config import Config
from carvana.data.cache import GIB, PhotoCache
from carvana.data.decoding import decode_image
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos, open_train
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.training.batches import train_loader
from carvana.training.dry_run import T4_FLOPS
from carvana.training.learner import build_learner

FOR_CPUS = {"demo", "vanilla_unet", "unet_lite2"}
SHIPPED = sorted({path.stem for path in command.EXPERIMENTS.glob("*.yaml")} - FOR_CPUS)
KAGGLE_CORES = 4
TRAIN_PHOTOS = 318 * 16 * 4 // 5  # of a fold
HALF = (640, 959)  # of a photo's size
WORKERS = min(os.cpu_count(), 64)  # the most that data.num_workers allows
BATCHES = 8  # of an epoch and worker process
SECONDS = 2.0  # of each time at half size
COLUMNS = ("decoded", "cached", "kept", "first", "later", "one", "two")


def main(
    experiments: Annotated[str, typer.Option(help="Names in src/experiments, joined by commas.")] = ",".join(SHIPPED),
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes: one a core.")] = WORKERS,
) -> None:
    photos, rates = open_train(input_root, cars), {}
    print(f"{processor()}, {workers} workers, torch {torch.__version__}; photos a second")
    print(f"{'':44}{'| a core, measured':26}{'| four cores, epochs':18}{'| a T4 trains':16}| two")
    print(f"{'experiment':27}{'size':>17}" + "".join(f"{column:>9}" for column in COLUMNS))
    for name in experiments.split(","):
        for stage in load_experiment(name, command.EXPERIMENTS).stages:
            stage = stage.changed(data={"num_workers": workers}, earlier_stages=())
            key = stage.data, stage.train.batch_size
            if key not in rates:
                rates[key] = [core for _, core in itertools.islice(epoch_rates(stage, photos), 2)]
            print_stage(stage, *rates[key])
    print("\nphoto to network size on one core, milliseconds, and the difference of pixels (of 255)")
    for size in ((256, 384), (384, 576), (512, 768), (640, 960)):
        compare_halved(photos, size)


def epoch_rates(stage: Config, photos: Photos) -> Iterator[tuple[float, float]]:
    """Of the loader's epochs: the first one decodes photos, later ones find all in the cache.

    Photos a second, and photos a second of a core's time: of that, what else runs on the machine takes nothing. There
    are fewer workers than batches. Raises InputError for a single batch, which takes no time after itself.
    """
    workers, batch_size = stage.data.num_workers, stage.train.batch_size
    photos = photos.select(photos.cars[: -(-BATCHES * max(1, workers) * batch_size // 16)])
    batches = len(photos.image_ids) // batch_size
    if batches < 2:
        raise InputError(f"{len(photos.image_ids)} photos are less than two batches of {batch_size}: give more cars")
    data, train = {"num_workers": min(workers, batches - 1)}, {"memory_format": "channels_last"}  # no step is run
    stage = stage.changed(data=data, train=train)
    learner = build_learner(stage, pretrained=False)
    cache = PhotoCache(photos, Fit.of(stage.data), 8 * math.prod(stage.data.size) * len(photos.image_ids) / GIB)
    while True:
        loader = train_loader(learner, cache)
        arrivals = [(len(images), time.monotonic(), worker_seconds()) for images, _ in loader]
        (_, *started), *later = arrivals[max(0, loader.num_workers - 1) :]  # each has handed over a batch
        count = sum(size for size, *_ in later)
        yield tuple(count / max(end - start, 0.01) for start, end in zip(started, later[-1][1:], strict=True))


def worker_seconds() -> float:
    """What this process's worker processes have computed, on all cores together; in Linux."""
    stats = [Path(f"/proc/{process.pid}/stat").read_text() for process in multiprocessing.active_children()]
    ticks = [sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def print_stage(stage: Config, decoded: float, cached: float) -> None:
    """Rates are of one core. In later epochs of a fold, photos beyond the configured cache are decoded again."""
    data = stage.data
    kept = min(1.0, data.cache_gib * GIB / (4 * math.prod(data.size) * TRAIN_PHOTOS))
    later = KAGGLE_CORES / (kept / cached + (1 - kept) / decoded)
    trained = T4_FLOPS / train_flops(stage)
    size = "x".join(map(str, data.size)) + (f"/{data.crop[0]}" if data.crop else "")
    verdict = "enough" if later >= 2 * trained else "enough for one" if later >= trained else "TOO FEW"
    numbers = f"{decoded:9.1f}{cached:9.1f}{100 * kept:7.0f} %{KAGGLE_CORES * decoded:9.1f}{later:9.1f}"
    print(f"{stage.name:27}{size:>17}{numbers}{trained:9.1f}{2 * trained:9.1f}  {verdict}", flush=True)


def compare_halved(photos: Photos, size: Size) -> None:
    """Prints what it gives to decode at half size and to shrink or, by a column, enlarge that."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    files, fit = [photos.photo_part.read(photos.name(image_id)) for image_id in photos.image_ids[:32]], Fit(size)
    images, milliseconds = [], []
    for least in (None, HALF):
        read = lambda data, least=least: fit.image(decode_image(data, "", least))
        images.append([read(data) for data in files])
        in_turn = map(read, itertools.cycle(files)).__next__
        milliseconds.append(1000 / call_rate(in_turn, torch.device("cpu"), SECONDS, clock=time.process_time))
    off = np.abs(np.subtract(*images, dtype=np.int16))
    times = "whole {:.1f}, at half size {:.1f}".format(*milliseconds)
    done = "done" if size <= HALF and size[1] <= HALF[1] else "NOT done"
    difference = f"difference {off.mean():.2f} in the mean, 99 % within {np.percentile(off, 99):.0f}"
    print(f"{size[0]}x{size[1]:<6}{times}; {difference}; {done} by training")


if __name__ == "__main__":
    command.run(main)
