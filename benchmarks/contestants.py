"""Who trains in time_to_dice.py, each the way its users do, and the loop of those that are not this project's.

No contestant's epoch is chosen by its Dice on the held-out cars: the last weights count. All see photos that are
decoded and shrunk by this project's code, in its precision and channels_last, and with its malloc settings, which
can only favour the others.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import cv2
import library  # noqa: F401
import numpy as np
import torch
from budget import train_for
from torch import nn
from torch.utils.data import DataLoader, Dataset

from carvana.config import Config, ModelConfig
from carvana.dataset import quiet_worker, to_tensor
from carvana.device import Device
from carvana.errors import InputError
from carvana.geometry import Fit, Size
from carvana.images import Photos
from carvana.inference import Member, predict_photos
from carvana.learner import build_learner
from carvana.log import say
from carvana.metrics import dice
from carvana.models import Segmenter, VanillaUNet
from carvana.models.encoder import create_encoder
from carvana.run import Fold
from carvana.state import load_state
from carvana.tta import TTA
from carvana.validation import THRESHOLD

EVALUATIONS = 5  # of one training, the final one included
SPARSE = 5  # those before the final one see every fifth held-out photo
NUM_WORKERS = 2


@dataclass(frozen=True)
class Race:
    """What is the same for all, and smp's two settings that are a matter of choice."""

    fold: Fold
    minutes: float  # of training: loading, forward, backward, optimizer
    config: Config  # ours; its encoder is smp's too
    device: Device
    smp_size: Size
    smp_lr: float


@dataclass
class Trained:
    """Weights after the last step, how they see photos, and the way there."""

    model: nn.Module
    fit: Fit
    minutes: float
    photos: int  # seen, repetitions counted
    points: list[dict]  # before the final evaluation: minutes of training, Dice and number of photos it is of
    notes: dict = field(default_factory=dict)


def score(model: nn.Module, fit: Fit, race: Race, image_ids: list[str], views: list[str] = ("identity",)) -> list:
    """Dice of each photo, at photo size."""
    members = [Member(fit, TTA(model.eval(), views))]
    predictions = predict_photos(members, race.fold.val, image_ids, race.device, masks=True, description="evaluate")
    return [dice(probs >= THRESHOLD, mask) for _, probs, mask in predictions]


def train_ours(race: Race) -> Trained:
    """The experiment, by the project's own training; each epoch is validated on all held-out photos."""
    planned, records = train_for(race.config, race.fold, race.minutes)
    learner = build_learner(planned)
    load_state(learner.accelerator, race.fold.folder / "state")
    minutes = [seconds / 60 for seconds in itertools.accumulate(record["train_seconds"] for record in records)]
    points = [
        {"minutes": passed, "dice": record["dice"], "photos": record["photos"]}
        for passed, record in zip(minutes, records, strict=True)
    ]
    notes = {"epochs": len(records), "epochs_planned": [stage.train.epochs for stage in planned.stages]}
    photos = count_photos(planned, records)
    return Trained(learner.ema.module, planned.data.geometry, minutes[-1], photos, points[:-1], notes)


def count_photos(config: Config, records: list[dict]) -> int:
    """What the epochs of a log saw, in batches of their stages."""
    steps = itertools.pairwise([0, *(record["step"] for record in records)])
    batches = (config.stage_of(record["epoch"] - 1)[0].train.batch_size for record in records)
    return sum(batch * (after - before) for batch, (before, after) in zip(batches, steps, strict=True))


def train_smp(race: Race) -> Trained:
    """segmentation_models.pytorch's U-Net on our encoder and ImageNet weights, by the loop of its examples."""
    import segmentation_models_pytorch as smp

    bce, soft_dice = nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    network = smp_unet(race.config.model)
    return train_by_clock(
        race,
        Recipe(
            Segmenter(network), Fit(race.smp_size), batch_size=4, hflip=True,
            optimizer=torch.optim.AdamW(network.parameters(), lr=race.smp_lr),
            loss=lambda logits, masks: bce(logits, masks) + soft_dice(logits, masks),
            rate=lambda passed: race.smp_lr * 0.5 * (1 + math.cos(math.pi * passed)),
        ),
    )  # fmt: skip


def smp_unet(config: ModelConfig) -> nn.Module:
    """smp.Unet whose encoder holds, tensor by tensor, what our encoder holds before training.

    smp's own port of EfficientNet-Lite (`timm-tf_efficientnet_lite0`) takes the same tensors but computes other
    features from them: its convolutions do not pad as TensorFlow's do, and its BatchNorm has another epsilon. Its
    universal encoder (`tu-`) is timm's own network and gives our features to the last bit.
    """
    import segmentation_models_pytorch as smp

    encoder = create_encoder(config.encoder, config.pretrained, config.weights)
    network = smp.Unet(f"tu-{config.encoder}", encoder_weights=None)
    network.encoder.model.load_state_dict(encoder.state_dict())
    network.mean, network.std = encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]
    network.multiple, network.border = encoder.multiple, 0
    return network


def train_pytorch_unet(race: Race) -> Trained:
    """The plain U-Net, from random weights, as its popular repository trains it by default.

    Half of the photo's size, colours in [0, 1], no augmentation, batches of one, RMSprop. Two differences: it trains
    in float32 unless asked for mixed precision, here it has the same precision as the others, which lets it see more
    photos; and its rate falls after five evaluations without a gain, which there are too few of here.
    """
    network = VanillaUNet(ModelConfig(architecture="vanilla_unet", border=0, upsampling="transposed"))
    network.mean, network.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    photos, lr = race.fold.train, 1e-5
    height, width = photos.image(photos.image_ids[0]).shape[:2]
    bce = nn.BCEWithLogitsLoss()
    return train_by_clock(
        race,
        Recipe(
            Segmenter(network), Fit((height // 2, width // 2)), batch_size=1, hflip=False,
            optimizer=torch.optim.RMSprop(network.parameters(), lr=lr, weight_decay=1e-8, momentum=0.999),
            loss=lambda logits, masks: bce(logits, masks) + plain_dice_loss(logits.float().sigmoid(), masks),
            rate=lambda _: lr, clip=1.0,
        ),
    )  # fmt: skip


def plain_dice_loss(probs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)), over the batch."""
    return 1 - 2 * (probs * masks).sum() / (probs.sum() + masks.sum()).clamp(min=1e-6)


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
    """Steps until the time is over; evaluations stop the clock, though not the loader, which is a few batches ahead."""
    model = recipe.model.to(race.device.device, memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(race.device.device.type, enabled=race.device.precision == "fp16")
    dataset = HardMaskSet(race.fold.train, recipe.fit, recipe.hflip)
    loader = DataLoader(dataset, recipe.batch_size, shuffle=True, num_workers=NUM_WORKERS, worker_init_fn=quiet_worker)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    image_ids, seconds, clock, photos, points = race.fold.val.image_ids[::SPARSE], 60 * race.minutes, 0.0, 0, []
    while clock < seconds:
        model.train()
        started = time.monotonic()
        images, masks = (tensor.to(race.device.device) for tensor in next(batches))
        for group in recipe.optimizer.param_groups:
            group["lr"] = recipe.rate(clock / seconds)
        train_step(model, recipe, images, masks, race.device, scaler)
        clock += time.monotonic() - started
        photos += len(images)
        if (len(points) + 1) / EVALUATIONS * seconds <= clock < seconds:
            scores = score(model, recipe.fit, race, image_ids)
            points.append({"minutes": clock / 60, "dice": sum(scores) / len(scores), "photos": len(scores)})
            say(f"{clock / 60:.1f} min, {photos} photos: Dice {points[-1]['dice']:.5f} on {len(scores)} photos")
    return Trained(model, recipe.fit, clock / 60, photos, points)


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


@dataclass(frozen=True)
class Contestant:
    train: Callable[[Race], Trained]
    settings: Callable[[Race], dict]  # of its own; a result is reused while they are the same


def smp_settings(race: Race) -> dict:
    encoder = race.config.model.model_dump(include={"encoder", "pretrained", "weights"})
    return encoder | {"size": race.smp_size, "lr": race.smp_lr}


CONTESTANTS = {
    "ours": Contestant(train_ours, lambda race: race.config.model_dump(mode="json")),
    "smp": Contestant(train_smp, smp_settings),
    "pytorch_unet": Contestant(train_pytorch_unet, lambda race: {}),
}


def parse_contestants(text: str) -> list[str]:
    """`all`, or names joined by commas. Raises InputError for an unknown one, or one that is not installed."""
    names = list(CONTESTANTS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in CONTESTANTS]:
        raise InputError(f"--contestants {text}: no {unknown[0]}; choose from all, {', '.join(CONTESTANTS)}")
    if "smp" in names and find_spec("segmentation_models_pytorch") is None:
        raise InputError("smp: pip install -r benchmarks/requirements.txt, or choose the others by --contestants")
    return names
