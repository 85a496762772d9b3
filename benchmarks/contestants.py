"""Who trains in time_to_dice.py, each the way its users do.

No contestant's epoch is chosen by its Dice on the held-out cars: the last weights count. All see photos that are
decoded and shrunk by this project's code, in its precision and channels_last, and with its malloc settings. That
favours the others, but for channels_last in float32 without AVX-512, where smp's step takes 10 to 20 % longer by it.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from clock import Recipe, train_by_clock
from race import Race, Trained
from torch import nn

from carvana.config import Config, ModelConfig
from carvana.data.geometry import Fit
from carvana.errors import InputError
from carvana.log import read_records
from carvana.models import Segmenter, VanillaUNet
from carvana.models.encoder import create_encoder
from carvana.training.fold import train_fold
from carvana.training.learner import build_learner
from carvana.training.run import Budget, kept_plan
from carvana.training.state import load_state


def train_ours(race: Race) -> Trained:
    """The experiment, by the project's own training, of as many epochs as fit into the minutes of training alone.

    Raises InputError for photos without true masks, which no other contestant has.
    """
    config, fold = race.config, race.fold
    if any(stage.data.pseudo or stage.data.soft for stage in config.stages):
        raise InputError(f"{config.name}: data.pseudo and data.soft are not compared here; src/train.py takes them")
    budget = Budget(60 * race.minutes, training_only=True)
    train_fold(config, fold, overwrite=True, budget=budget)
    planned = config.with_epochs(kept_plan(config, fold, budget)["epochs"])
    learner, records = build_learner(planned), read_records(fold.folder / "log.jsonl")
    load_state(learner.accelerator, fold.folder / "state")
    notes = {"epochs": [stage.train.epochs for stage in planned.stages]}
    minutes = sum(record["train_seconds"] for record in records) / 60
    return Trained(learner.ema.module, Fit.of(planned.data), minutes, count_photos(planned, records), notes)


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
    network.multiple, network.border = max(encoder.feature_info.reduction()), 0
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
