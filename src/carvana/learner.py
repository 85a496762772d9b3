"""All that the training of one fold changes, and how it is built."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn

from carvana.checkpoint import load_checkpoint
from carvana.config import Config
from carvana.device import chosen_precision
from carvana.errors import InputError
from carvana.losses import Loss, weighted_sum
from carvana.models import Segmenter, build_model
from carvana.optim import build_optimizer, freeze_norm
from carvana.state import Progress


@dataclass
class Learner:
    """One fold's model, averaged model, optimizer, loss and progress."""

    accelerator: Accelerator
    model: nn.Module
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    loss: Loss
    progress: Progress
    config: Config

    @property
    def stage(self) -> Config:
        """The settings of the epoch in progress."""
        return self.config.stage_of(self.progress.epoch)[0]

    def begin_stage(self) -> None:
        """What an earlier stage has found out is no longer true: its best epoch is replaced by this one's."""
        train = self.stage.train
        self.progress.micro_batch = train.micro_batch or train.batch_size
        self.progress.best_dice, self.progress.photo_losses = -1.0, []

    def begin_epoch(self) -> bool:
        """Training mode, but for BatchNorm that is to keep its statistics; True if the encoder is frozen."""
        optim = self.stage.optim
        frozen = self.progress.epoch < optim.frozen_encoder_epochs
        self.model.train()
        if frozen or optim.frozen_norm:
            freeze_norm(self.accelerator.unwrap_model(self.model).network.encoder)
        return frozen


def build_learner(
    config: Config, initial: Path | None = None, tracker: str = "none", folder: Path | None = None
) -> Learner:
    """Everything on the device and in the precision that are there; weights of the checkpoint `initial`, if given.

    A tracker other than `none` needs the run's folder; it is not started yet.
    """
    set_seed(config.train.seed)
    log_with = None if tracker == "none" else tracker
    accelerator = Accelerator(
        mixed_precision=chosen_precision(config.train.precision), log_with=log_with, project_dir=folder
    )
    model = build_model(config.model, pretrained=initial is None)
    if initial:
        load_weights(model, initial)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
    optimizer = build_optimizer(model, config.optim, accelerator.num_processes)
    if config.train.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    state = Progress(micro_batch=config.train.micro_batch or config.train.batch_size)
    accelerator.register_for_checkpointing(ema.module, state)
    return Learner(accelerator, model, ema, optimizer, weighted_sum(config.loss), state, config)


def load_weights(model: Segmenter, path: Path) -> None:
    """Takes a checkpoint's weights. Raises InputError if they do not fit."""
    try:
        model.load_state_dict(load_checkpoint(path).model.state_dict())
    except RuntimeError:
        raise InputError(f"train.init_from: {path} has other model settings: give this run the same") from None
