"""What the loop around a training step costs, and what the defaults gain: `python benchmarks/train_throughput.py`.

Each round takes the real loop over photos that it has to decode, the bare step, the real loop over the same photos
from the cache, and the bare step in float32 and channels-first: a machine that slows down slows all of them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import library  # noqa: F401
import torch
import typer
from machine import describe_machine, headline
from timm.utils import ModelEmaV3

from carvana import command
from carvana.config import Config
from carvana.data.cache import PhotoCache
from carvana.data.geometry import Fit
from carvana.data.images import open_train
from carvana.device import Device
from carvana.experiment import load_experiment
from carvana.models import Segmenter, build_model
from carvana.models.cpu import speed_up_convolutions
from carvana.models.formats import FORMATS
from carvana.training.batches import train_loader
from carvana.training.engine import train_one_epoch
from carvana.training.learner import Learner, build_learner
from carvana.training.losses import weighted_sum
from carvana.training.optim import build_optimizer

PHOTOS_A_CAR = 16
WANTED = 0.9  # of the bare step's photos per second
KINDS = ("first epoch", "cached epoch", "bare step", "bare float32")


def main(
    experiment: Annotated[str, typer.Option(help="A name in src/experiments, or a path.")] = "unet_lite0",
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    overrides: command.OverridesOption = (),
    photos: Annotated[int, typer.Option(min=1, help="Photos of a block, rounded up to whole cars.")] = 80,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    config = load_experiment(experiment, command.EXPERIMENTS, list(overrides)).changed(earlier_stages=())
    source = open_train(input_root, cars, config.data.photos)
    source = source.select(source.cars[: -(-photos // PHOTOS_A_CAR)])
    learner = build_learner(config)
    device = learner.device
    images, masks = next(iter(train_loader(learner, PhotoCache(source, Fit.of(config.data), 0))))
    images, masks = images.to(device.device), masks.to(device.device).float() / 255
    steps = len(source.image_ids) // len(images)
    build = lambda layout, device: bare_step(default_model(config, device, layout), learner, images, masks, device)
    default, float32 = build(learner.memory_format, device), build("contiguous", Device(device.device))
    for step in (default, float32):
        step()  # oneDNN and cuDNN choose their kernels
    print(f"{headline(describe_machine(device))}; {config.name}, {len(source.image_ids)} photos a block")
    print("photos/s" + "".join(f"{kind:>15}" for kind in KINDS))
    rates = []
    for number in range(rounds):
        cache = PhotoCache(source, Fit.of(config.data), config.data.cache_gib)
        first = epoch_rate(learner, cache)
        bare = step_rate(default, steps, len(images))
        cached = epoch_rate(learner, cache)
        plain = step_rate(float32, max(1, steps // 4), len(images))  # several times slower
        rates.append((first, cached, bare, plain))
        print(f"round {number + 1:2}" + "".join(f"{rate:15.2f}" for rate in rates[-1]), flush=True)
    report(rates, learner.accelerator.mixed_precision, learner.memory_format)


def default_model(config: Config, device: Device, layout: str) -> Segmenter:
    """As a run trains it."""
    model = build_model(config.model)
    if device.device.type == "cpu":
        speed_up_convolutions(model)
    model = model.lay_out(device.device, FORMATS[layout])
    if config.train.compile:
        model.compile()
    return model


def bare_step(
    model: Segmenter, learner: Learner, images: torch.Tensor, masks: torch.Tensor, device: Device
) -> Callable[[], None]:
    """Forward, backward, optimizer and averaged weights on a batch that is on the device, and nothing else."""
    config, micro_batch = learner.config, learner.position.micro_batch
    parts = list(zip(images.split(micro_batch), masks.split(micro_batch), strict=True))
    model.train()
    ema = ModelEmaV3(model, decay=config.optim.ema_decay)
    optimizer, loss = build_optimizer(model, config.optim), weighted_sum(config.loss)

    def step() -> None:
        for part, truth in parts:
            with device.autocast():
                logits = model(part)
            value = loss(logits, truth).sum() / len(images)
            value.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        value.item()  # a GPU has finished now

    return step


def step_rate(step: Callable[[], None], steps: int, batch_size: int) -> float:
    """Photos per second of bare steps."""
    started = time.monotonic()
    for _ in range(steps):
        step()
    return steps * batch_size / (time.monotonic() - started)


def epoch_rate(learner: Learner, photos: PhotoCache) -> float:
    """Photos per second of an epoch of the real loop, the start of its loader included."""
    started = time.monotonic()
    train_one_epoch(learner, train_loader(learner, photos), float("inf"))
    return len(photos) / (time.monotonic() - started)


def report(rates: list[tuple[float, ...]], precision: str, layout: str) -> None:
    """Medians over the rounds of what was measured side by side."""
    first, cached, gain = (
        statistics.median(ratios)
        for ratios in zip(*((f / bare, c / bare, bare / plain) for f, c, bare, plain in rates), strict=True)
    )
    verdict = "reached" if cached >= WANTED else "MISSED"
    native = "float32" if precision == "no" else precision
    print(f"real loop over bare step, median of {len(rates)} rounds:")
    print(f"  from the cache  {cached:.3f}  (at least {WANTED} wanted: {verdict})")
    print(f"  first epoch     {first:.3f}  (decodes photos and fills the cache)")
    print(f"bare step, {native} and {layout} over float32 and channels-first: {gain:.2f} times the photos per second")


if __name__ == "__main__":
    command.run(main)
