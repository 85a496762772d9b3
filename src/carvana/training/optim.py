"""Optimizer and rate: Muon or AdamW with a smaller rate for the pretrained encoder, a warm-up and a cosine."""

import math

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from carvana.config import OptimConfig
from carvana.errors import InputError
from carvana.models import Segmenter
from carvana.models.encoder import encoder_parts
from carvana.training.muon import Muon

OPTIMIZERS = {"muon": Muon, "adamw": torch.optim.AdamW}


def build_optimizer(model: Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """Each group holds its `share` of `optim.lr`. Raises InputError for an encoder's setting without encoder."""
    encoder = getattr(model.network, "encoder", None)
    if encoder is None and config.layer_decay < 1:
        raise InputError("optim.layer_decay: this architecture has no encoder")
    parts = encoder_parts(encoder) if encoder else []
    in_encoder = {id(parameter) for part in parts for parameter in part.parameters()}
    others = {n.replace(".", "/"): p for n, p in model.named_parameters() if id(p) not in in_encoder}
    decoder, groups = nn.ParameterDict(others), []
    for depth, part in enumerate([*parts, decoder], start=1):
        share = 1.0 if part is decoder else config.encoder_lr_factor * config.layer_decay ** (len(parts) - depth)
        settings = {"share": share, "encoder": part is not decoder, "lr": config.lr * share}
        groups += [g | settings for g in param_groups_weight_decay(part, config.weight_decay) if g["params"]]
    return OPTIMIZERS[config.optimizer](groups, lr=config.lr, weight_decay=0.0)


def rate_factor(passed: float, step: float, warmup: float) -> float:
    """Rate over peak rate: linear up for `warmup` of the way, then a cosine down to 0.

    `passed` is the share of the way, 0 to 1, before a step; `step` is the step's own share. Whole steps rise.
    """
    rising = max(1, round(warmup / step)) * step
    if passed < rising:
        return min(1.0, (passed + step) / rising)
    return 0.5 * (1 + math.cos(math.pi * (passed - rising) / (1 - rising)))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Each group's share of `lr`. It depends on how much of the stage has passed: there is nothing to resume."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
