"""The training loop of contestants that are not this project's: steps until the time is over."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from race import Race, Trained
from torch import nn
from torch.utils.data import DataLoader, Dataset

from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.data.loader import to_tensor, worker_options
from carvana.device import Device
from carvana.log import progress
from carvana.models import Segmenter


@dataclass
class Recipe:
    """How a network is trained that is not this project's."""

    model: Segmenter
    fit: Fit
    batch_size: int
    hflip: bool
    optimizer: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rate: Callable[[float], float]  # learning rate by the share of the time that has passed
    clip: float = math.inf  # largest norm of the gradient


def train_by_clock(race: Race, recipe: Recipe) -> Trained:
    """Steps until the time is over. cuDNN has chosen its algorithms before, as it does while ours is planned."""
    model = recipe.model.to(race.device.device, memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(race.device.device.type, enabled=race.device.precision == "fp16")
    dataset = HardMaskSet(race.fold.train, recipe.fit, recipe.hflip)
    loader = DataLoader(dataset, recipe.batch_size, shuffle=True, **worker_options(race.config.data.num_workers))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    torch.backends.cudnn.benchmark = True  # as ours
    model.train()
    images, masks = (tensor.to(race.device.device) for tensor in next(iter(loader)))  # starts the workers' server
    with race.device.autocast():
        recipe.loss(model(images), masks.float()).backward()
    recipe.optimizer.zero_grad()
    seconds, clock, photos = 60 * race.minutes, 0.0, 0
    started = time.monotonic()
    with progress(None, "train", round(seconds), "s") as bar:
        while clock < seconds:
            images, masks = (tensor.to(race.device.device) for tensor in next(batches))
            for group in recipe.optimizer.param_groups:
                group["lr"] = recipe.rate(clock / seconds)
            train_step(model, recipe, images, masks, race.device, scaler)
            clock = time.monotonic() - started
            photos += len(images)
            bar.update(round(clock) - bar.n)
    return Trained(model, recipe.fit, clock / 60, photos)


def train_step(
    model: nn.Module, recipe: Recipe, images: torch.Tensor, masks: torch.Tensor, device: Device,
    scaler: torch.amp.GradScaler,
) -> None:  # fmt: skip
    with device.autocast():
        loss = recipe.loss(model(images), masks.float())
    scaler.scale(loss).backward()
    scaler.unscale_(recipe.optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    scaler.step(recipe.optimizer)
    scaler.update()
    recipe.optimizer.zero_grad()
    loss.item()  # a GPU has finished now, and the clock is right


class HardMaskSet(Dataset):
    """Photos (3, h, w) uint8, and masks (1, h, w) uint8 in {0, 1}, resized by the nearest pixel."""

    def __init__(self, photos: Photos, fit: Fit, hflip: bool):
        self.photos, self.image_ids, self.fit, self.hflip = photos, photos.image_ids, fit, hflip

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_id, (height, width) = self.image_ids[index], self.fit.size
        (image,), _ = self.photos.fitted(image_id, [self.fit])
        mask = self.photos.mask(image_id).astype(np.uint8)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        if self.hflip and torch.rand(()) < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1].copy()
        return to_tensor(image), torch.from_numpy(mask)[None]
