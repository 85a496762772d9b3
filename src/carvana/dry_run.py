"""What training an experiment would cost, found before it is begun: memory computed, time measured on a few steps."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from carvana.config import Config
from carvana.device import chosen_precision, process_state
from carvana.engine import forward_backward, update
from carvana.errors import InputError
from carvana.folds import check_folds
from carvana.footprint import GIB, OVERHEAD, T4, Footprint
from carvana.images import car_of, open_train, read_cars
from carvana.learner import Learner, build_learner
from carvana.log import say

ANGLES = 16  # photos of a car
PATIENCE = 60.0  # seconds for measuring a stage, beyond its first photos
STEPS = 3
T4_FLOPS = 12e12  # a second in fp16: assumed, a fifth of the 65e12 that the card is sold with


@dataclass(frozen=True)
class Pace:
    """Seconds a step and seconds of one photo's prediction, and how they were measured."""

    step: float
    prediction: float
    photos: int  # of a measured step
    at_once: int
    steps: int


def dry_run(config: Config, photos: dict[int, int], chosen: list[int], timed: bool = True) -> Iterator[str]:
    """Lines for the reader: each stage's cost, then the hours of each chosen fold.

    `photos` holds the number of photos by fold. Nothing is downloaded, read or written. Loading photos is not
    measured; torch.compile is left out. Unless `timed`, no step is run, and hours are only computed, for a T4.
    """
    if absent := sorted(set(chosen) - photos.keys()):
        raise InputError(f"--fold {absent[0]}: the table has folds 0 to {max(photos)}")
    hours, computed = (dict.fromkeys(chosen, 0.0) for _ in range(2))
    for number, stage in enumerate(config.stages, start=1):
        footprint, train = Footprint(stage), stage.train
        height, width = footprint.size
        yield (
            f"{config.name}, stage {number} of {len(config.stages)}: {height}x{width}, {train.epochs} epochs, "
            f"{train.batch_size} photos a step, {train.micro_batch or train.batch_size} at once"
        )
        yield from describe(footprint)
        for fold in computed:
            others = sum(photos.values()) - photos[fold]
            computed[fold] += t4_seconds(stage, footprint.macs(), others, photos[fold]) / 3600
        if not timed:
            hours = {}
            continue
        pace = measure(footprint)
        if pace is None:
            yield f"  time        not measured: even one photo needs more than the {room() / GIB:.1f} GiB here"
            hours = {}
            continue
        yield f"  time        {pace.step:.2f} s a step ({explain(pace, stage)})"
        for fold in hours:
            hours[fold] += stage_seconds(stage, pace, sum(photos.values()) - photos[fold], photos[fold]) / 3600
    for fold, total in computed.items():
        yield f"fold {fold} on a T4: {total:.1f} hours, computed at {T4_FLOPS / 1e12:.0f} TFLOP/s, not measured"
    for fold, total in hours.items():
        trained = sum(photos.values()) - photos[fold]
        yield f"fold {fold}: {trained} photos to train on, {photos[fold]} to validate on: {total:.1f} hours"
    if hours:
        yield f"in all {sum(hours.values()):.1f} hours, validation included, loading of photos not"


def describe(footprint: Footprint) -> Iterator[str]:
    """What is computed: parameters, multiplications, memory."""
    encoder, rest = footprint.parameters
    yield f"  parameters  {encoder / 1e6:.1f} M in the encoder, {rest / 1e6:.1f} M in decoder and head"
    yield f"  forward     {footprint.macs() / 1e9:.0f} GMAC a photo"
    needed, most = t4_bytes(footprint), footprint.largest_batch(T4 - OVERHEAD, "fp16")
    verdict = "fits" if needed <= T4 else "does not fit"
    yield (
        f"  memory      {needed / GIB:.1f} GiB on a GPU in fp16, {OVERHEAD / GIB:.0f} of it allowed for CUDA itself: "
        f"{verdict} a T4 ({T4 / GIB:.1f} GiB); at most {most} photos at once do"
    )
    precision = chosen_precision(footprint.config.train.precision)
    here = "fp32" if precision == "no" else precision
    yield f"              {local_bytes(footprint) / GIB:.1f} GiB here in {here} ({process_state().device})"


def t4_bytes(footprint: Footprint) -> int:
    """Of a step in fp16 on a GPU, with what CUDA itself takes."""
    return footprint.configured_bytes("fp16") + OVERHEAD


def local_bytes(footprint: Footprint) -> int:
    """Of a step on this device in the precision that training would have."""
    overhead = OVERHEAD if process_state().device.type == "cuda" else 0
    return footprint.configured_bytes(chosen_precision(footprint.config.train.precision)) + overhead


def room() -> int:
    """Bytes that tensors may take on this device: on a CPU four fifths of the memory."""
    device = process_state().device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - OVERHEAD
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4 // 5


def measure(footprint: Footprint, patience: float = PATIENCE) -> Pace | None:
    """Times real steps on random photos, after one to warm up; None if not even one photo fits.

    Where the configured batch does not fit, or would take longer than `patience` seconds, fewer photos are
    measured, and the time of forward and backward (not of the optimizer) is scaled by their number.
    """
    config, train = footprint.config, footprint.config.train
    fitting = footprint.largest_batch(room(), chosen_precision(train.precision))
    if fitting < 1:
        return None
    learner = build_learner(_without_weights(config))
    learner.begin_epoch()
    learner.progress.micro_batch = min(learner.progress.micro_batch, fitting)
    timed = [time_step(learner, footprint, 1)]  # a cold one: it only tells how many photos there is time for
    if sum(timed[0]) < patience / 2:
        timed = [time_step(learner, footprint, 1)]
    photos = max(1, min(train.batch_size, int(patience / (STEPS + 1) / sum(timed[0]))))
    if photos > learner.progress.micro_batch:  # whole micro-batches
        photos -= photos % learner.progress.micro_batch
    if sum(timed[0]) < patience:
        started, timed = time.monotonic(), []
        time_step(learner, footprint, photos)
        while len(timed) < STEPS and (not timed or time.monotonic() - started < patience):
            timed.append(time_step(learner, footprint, photos))
    passes, updates = (sum(seconds) / len(timed) for seconds in zip(*timed, strict=True))
    step = passes * train.batch_size / photos + updates
    return Pace(step, time_prediction(learner, footprint), photos, learner.progress.micro_batch, len(timed))


def time_step(learner: Learner, footprint: Footprint, photos: int) -> tuple[float, float]:
    """Seconds of one step's forward, loss and backward, and of its optimizer and averaged weights."""
    device = learner.accelerator.device
    images, masks = (
        torch.randint(0, 256, (photos, channels, *footprint.size), dtype=torch.uint8, device=device)
        for channels in (3, 1)
    )
    started = time.monotonic()
    losses = forward_backward(learner, images, masks).tolist()
    _wait(device)
    passed = time.monotonic()
    update(learner, sum(losses) / photos)
    _wait(device)
    return passed - started, time.monotonic() - passed


def time_prediction(learner: Learner, footprint: Footprint) -> float:
    """Seconds of one whole photo's prediction by the averaged model, as in validation."""
    device, model = learner.accelerator.device, learner.ema.module.eval()
    image = torch.randint(0, 256, (1, 3, *footprint.config.data.size), dtype=torch.uint8, device=device)
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        with torch.inference_mode(), learner.accelerator.autocast():
            model(image)
        _wait(device)
    return time.monotonic() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _without_weights(config: Config) -> Config:
    """The same network with random weights, not compiled, in a run of one stage."""
    model, train = config.model.model_copy(update={"pretrained": False}), {"compile": False}
    return config.model_copy(
        update={"model": model, "train": config.train.model_copy(update=train), "earlier_stages": ()}
    )


def explain(pace: Pace, stage: Config) -> str:
    """What was measured."""
    batch_size, micro_batch = stage.train.batch_size, stage.train.micro_batch or stage.train.batch_size
    told = [f"mean of {pace.steps}" if pace.steps > 1 else "one step"]
    if pace.photos < batch_size:
        told.append(f"measured with {pace.photos} of {batch_size} photos and scaled")
    if pace.at_once < min(micro_batch, pace.photos):
        told.append(f"{pace.at_once} at once for lack of memory")
    return ", ".join(told)


def stage_seconds(stage: Config, pace: Pace, train_photos: int, val_photos: int) -> float:
    """All epochs of a stage, with validation, shared among the processes that run."""
    processes = process_state().num_processes
    seen = train_photos + round(train_photos * stage.train.replay)
    steps = math.ceil(seen / (stage.train.batch_size * processes))
    return stage.train.epochs * (steps * pace.step + val_photos / processes * pace.prediction)


def t4_seconds(stage: Config, macs: int, train_photos: int, val_photos: int) -> float:
    """All epochs of a stage with validation on one T4; backward costs twice what forward does."""
    (height, width), (crop_height, crop_width) = stage.data.size, stage.data.crop or stage.data.size
    whole = height * width / (crop_height * crop_width)  # validation sees whole photos
    seen = train_photos * (1 + stage.train.replay)
    return stage.train.epochs * 2 * macs * (3 * seen + whole * val_photos) / T4_FLOPS


def count_photos(input_root: Path, folds: pd.DataFrame, cars_file: Path | None) -> dict[int, int]:
    """Photos by fold: those in `input_root` or, if there are none, 16 of each car in the table."""
    try:
        number = Counter(map(car_of, open_train(input_root, cars_file).image_ids))
    except InputError as error:
        number = dict.fromkeys(read_cars(cars_file) if cars_file else folds["car"], ANGLES)
        say(f"{error}\nwithout them: {ANGLES} photos are assumed of each of {len(number)} cars")
    present = check_folds(folds, number)
    return present["car"].map(number).groupby(present["fold"]).sum().to_dict()
