"""All that the training of one fold changes, and how it is built."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn

from carvana.config import Config
from carvana.device import Device, chosen_precision
from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.checkpoint import load_checkpoint
from carvana.models.cpu import speed_up_convolutions
from carvana.training.losses import Loss, weighted_sum
from carvana.training.optim import build_optimizer
from carvana.training.state import Position


@dataclass
class Learner:
    """One fold's model, averaged model, optimizer, loss and position."""

    accelerator: Accelerator
    model: nn.Module
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    loss: Loss
    position: Position
    config: Config

    @property
    def stage(self) -> Config:
        """The settings of the epoch in progress."""
        return self.config.stage_of(self.position.epoch)[0]

    @property
    def device(self) -> Device:
        return Device(self.accelerator.device, self.accelerator.mixed_precision)

    def begin_stage(self) -> None:
        """Forgets what was true of the stage before: its micro-batch, and its best Dice."""
        train = self.stage.train
        self.position.micro_batch, self.position.best_dice = train.micro_batch or train.batch_size, -1.0


def build_learner(
    config: Config, initial: Path | None = None, tracker: str = "none", folder: Path | None = None,
    pretrained: bool = True,
) -> Learner:  # fmt: skip
    """A learner before its first epoch, on this process's device, with the weights of the checkpoint `initial`, if any.

    With `pretrained=False` all weights are random and no file is read. A tracker other than `none`, which is not
    started yet, needs the run's folder.
    """
    set_seed(config.train.seed)
    precision, log_with = chosen_precision(config.train.precision), None if tracker == "none" else tracker
    accelerator = Accelerator(mixed_precision=precision, log_with=log_with, project_dir=folder)
    model = build_model(config.model, pretrained=pretrained and initial is None)
    if initial:
        try:
            model.load_state_dict(load_checkpoint(initial).model.state_dict())
        except RuntimeError:
            advice = "has other model settings: give this run the same"
            raise InputError(f"train.init_from: {initial} {advice}") from None
    if accelerator.device.type == "cpu":
        speed_up_convolutions(model)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
    optimizer = build_optimizer(model, config.optim)
    if config.train.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    learner = Learner(accelerator, model, ema, optimizer, weighted_sum(config.loss), Position(), config)
    learner.begin_stage()
    accelerator.register_for_checkpointing(ema.module, learner.position)
    return learner
