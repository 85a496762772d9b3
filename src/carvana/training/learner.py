"""All that the training of one fold changes, and how it is built."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from timm.utils import ModelEmaV3
from torch import nn

from carvana.config import Config
from carvana.device import Device, chosen_precision
from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.checkpoint import load_checkpoint
from carvana.models.cpu import speed_up_convolutions
from carvana.models.formats import FORMATS, choose_format
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
    memory_format: str  # of FORMATS
    bad_in_a_row: int = 0  # steps that were skipped, up to now

    @property
    def stage(self) -> Config:
        """The settings of the epoch in progress."""
        return self.config.stage_of(self.position.epoch)[0]

    @property
    def device(self) -> Device:
        return Device(self.accelerator.device, self.accelerator.mixed_precision)

    def passed(self, done: int) -> float:
        """Of the stage's schedule, 0 to 1, after so many of its epochs: linear from where the plan was last changed."""
        before, since = self.position.passed, self.position.since
        return before + (1 - before) * (done - since) / (self.stage.train.epochs - since)

    def begin_stage(self) -> None:
        """Rate and best Dice begin anew."""
        self.position.best_dice, self.position.since, self.position.passed = -1.0, 0, 0.0

    def change_epochs(self, config: Config) -> None:
        """Goes on to another number of epochs: the rate of the stage in progress ends with them, and has no jump."""
        _, done = self.config.stage_of(self.position.epoch)
        if done:
            self.position.passed, self.position.since = self.passed(done), done
        self.config = config

    def begin_epoch(self) -> None:
        """Notes the precision, and tries the configured micro-batch again: what left it no memory may be gone."""
        precisions, precision = self.position.precisions, self.accelerator.mixed_precision
        self.position.precisions = precisions + [precision] * (precisions[-1:] != [precision])
        self.position.micro_batch = self.stage.train.at_once


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
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate does that for GPUs only
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    torch.backends.cudnn.benchmark = True  # photos have one size
    model = build_model(config.model, pretrained=pretrained and initial is None)
    if initial:
        try:
            model.load_state_dict(load_checkpoint(initial).model.state_dict())
        except RuntimeError:
            advice = "has other model settings: give this run the same"
            raise InputError(f"train.init_from: {initial} {advice}") from None
    if accelerator.device.type == "cpu":
        speed_up_convolutions(model)
    memory_format = config.train.memory_format
    if memory_format == "auto":
        images = torch.Size((config.train.at_once, 3, *config.data.train_size))  # a step's: cuDNN tries once
        memory_format = choose_format(model, Device(accelerator.device, precision), images)
    (memory_format,) = broadcast_object_list([memory_format])  # the first process decides: DDP wants them alike
    model = model.lay_out(accelerator.device, FORMATS[memory_format])
    ema = ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
    optimizer = build_optimizer(model, config.optim)
    if config.train.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    learner = Learner(accelerator, model, ema, optimizer, weighted_sum(config.loss), Position(), config, memory_format)
    learner.begin_epoch()
    accelerator.register_for_checkpointing(ema.module, learner.position)
    return learner
