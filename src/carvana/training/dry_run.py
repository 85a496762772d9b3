"""What the training of an experiment would cost: its memory is computed, its time measured on a few steps."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from carvana.config import Config
from carvana.data.folds import check_folds, fold_name
from carvana.data.images import car_of, open_train, read_cars
from carvana.device import chosen_precision, process_state
from carvana.errors import InputError
from carvana.log import say
from carvana.training.engine import forward_backward, update
from carvana.training.footprint import GIB, OVERHEAD, T4, Footprint
from carvana.training.learner import build_learner

ANGLES = 16  # photos of a car
STEPS = 2
T4_FLOPS = 12e12  # a second in fp16: assumed, a fifth of the 65e12 that the card is sold with


def cost_of_training(
    config: Config, photos: dict[int, int], folds: list[int | None], timed: bool = True
) -> Iterator[str]:
    """Lines for the reader: each stage's cost, then the hours of each of the `folds`; `photos` holds photos by fold.

    Nothing is downloaded, read or written. Loading of photos and torch.compile are left out. Unless `timed`, no step is
    run, and hours are only computed, for a T4.
    """
    if absent := sorted(set(folds) - {None, *photos}):
        raise InputError(f"--fold {absent[0]}: the table has folds 0 to {max(photos)}")
    held_out = {fold: photos.get(fold, 0) for fold in folds}
    splits = {fold: (sum(photos.values()) - val, val) for fold, val in held_out.items()}  # train, val
    computed, measured = dict.fromkeys(folds, 0.0), dict.fromkeys(folds, 0.0)  # seconds
    for number, stage in enumerate(config.stages, start=1):
        footprint = Footprint(stage)
        (height, width), train = footprint.size, stage.train
        steps = f"{train.batch_size} photos a step, {train.at_once} at once"
        yield f"{config.name}, stage {number} of {len(config.stages)}: {height}x{width}, {train.epochs} epochs, {steps}"
        yield from cost_lines(footprint)
        step, at_once = measure(footprint) if timed else (math.nan, 0)
        if at_once:
            yield f"  time        {step:.2f} s a step (mean of {STEPS}, {at_once} photos at once)"
        elif timed:
            yield f"  time        not measured: even one photo needs more than the {room() / GIB:.1f} GiB here"
        for fold, split in splits.items():
            computed[fold] += t4_seconds(footprint, *split)
            passes = forward_passes(stage, *split)
            measured[fold] += passes * step / (3 * train.batch_size) / process_state().num_processes
    for fold, seconds in computed.items():
        speed = f"computed at {T4_FLOPS / 1e12:.0f} TFLOP/s, not measured"
        yield f"fold {fold_name(fold)} on a T4: {seconds / 3600:.1f} hours, {speed}"
    if math.isfinite(total := sum(measured.values())):
        for fold, (train_photos, val_photos) in splits.items():
            counts = f"{train_photos} photos to train on, {val_photos} to validate on"
            yield f"fold {fold_name(fold)}: {counts}: {measured[fold] / 3600:.1f} hours"
        yield f"in all {total / 3600:.1f} hours, validation included, loading of photos not"


def cost_lines(footprint: Footprint) -> Iterator[str]:
    """What is computed: parameters, multiplications, memory."""
    encoder, decoder = footprint.parameters
    yield f"  parameters  {encoder / 1e6:.1f} M in the encoder, {decoder / 1e6:.1f} M in decoder and head"
    yield f"  forward     {footprint.macs() / 1e9:.0f} GMAC a photo"
    yield f"  prediction  {t4_rate(footprint):.1f} photos a second on a T4 by one network through one view, computed"
    needed, most = footprint.configured_bytes("fp16") + OVERHEAD, footprint.largest_batch(T4 - OVERHEAD, "fp16")
    memory = f"{needed / GIB:.1f} GiB on a GPU in fp16, {OVERHEAD / GIB:.0f} of it allowed for CUDA itself"
    fits = "fits" if needed <= T4 else "does not fit"
    yield f"  memory      {memory}: {fits} a T4 ({T4 / GIB:.1f} GiB); at most {most} photos at once do"
    precision, device = chosen_precision(footprint.config.train.precision), process_state().device
    here = footprint.configured_bytes(precision) + (OVERHEAD if device.type == "cuda" else 0)
    yield f"              {here / GIB:.1f} GiB here in {precision.replace('no', 'fp32')} ({device})"


def room() -> int:
    """Bytes that tensors may take on this device: on a CPU four fifths of the memory."""
    device = process_state().device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - OVERHEAD
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4 // 5


def measure(footprint: Footprint) -> tuple[float, int]:
    """Seconds of a step on random photos, and how many it takes at once; (nan, 0) if not even one photo fits."""
    settings = {"compile": False, "memory_format": "channels_last"}
    config = footprint.config.changed(train=settings, earlier_stages=())
    fitting = footprint.largest_batch(room(), chosen_precision(config.train.precision))
    if fitting < 1:
        return math.nan, 0
    learner = build_learner(config, pretrained=False)
    learner.position.micro_batch = min(learner.position.micro_batch, fitting)
    model, shape = learner.model.train(), (config.train.batch_size, 4, *footprint.size)
    batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=learner.accelerator.device)
    for count in range(1 + STEPS):
        if count == 1:  # after one to warm up
            started = time.monotonic()
        forward_backward(learner, batch[:, :3], batch[:, 3:])
        update(learner, learner.accelerator.clip_grad_norm_(model.parameters(), config.optim.clip).item())
    return (time.monotonic() - started) / STEPS, learner.position.micro_batch


def t4_seconds(footprint: Footprint, train_photos: int, val_photos: int) -> float:
    """Of all epochs of a stage on a T4, computed."""
    return forward_passes(footprint.config, train_photos, val_photos) * 2 * footprint.macs() / T4_FLOPS


def t4_rate(footprint: Footprint) -> float:
    """Photos a second that a T4 predicts by one network through one view, computed."""
    return T4_FLOPS / (2 * footprint.macs() * photo_cost(footprint.config))


def forward_passes(stage: Config, train_photos: int, val_photos: int) -> float:
    """Of photos at training size, in all epochs: backward costs two of them, and validation sees whole photos."""
    val_photos /= stage.train.validate_every
    train_photos *= 1 + stage.data.pseudo_share if stage.data.pseudo else 1  # if there are as many
    return stage.train.epochs * (3 * train_photos + photo_cost(stage) * val_photos)


def photo_cost(stage: Config) -> float:
    """How many photos at training size a whole one counts for."""
    return math.prod(stage.data.size) / math.prod(stage.data.train_size)


def count_photos(input_root: Path, folds: pd.DataFrame, cars_file: Path | None) -> dict[int, int]:
    """Photos by fold: those in `input_root` or, if there are none, 16 of each car in the table."""
    try:
        counts = Counter(map(car_of, open_train(input_root, cars_file).image_ids))
    except InputError as error:
        counts = dict.fromkeys(read_cars(cars_file) if cars_file else folds["car"], ANGLES)
        say(f"{error}\nwithout them: {ANGLES} photos are assumed of each of {len(counts)} cars")
    present = check_folds(folds, counts)
    return present["car"].map(counts).groupby(present["fold"]).sum().to_dict()
