"""Optimizer and rate: AdamW with a smaller rate for the pretrained encoder, a warm-up and a cosine."""

import math

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay

from carvana.config import OptimConfig
from carvana.models import Segmenter


def build_optimizer(model: Segmenter, config: OptimConfig, num_processes: int = 1) -> torch.optim.Optimizer:
    """AdamW; each group holds its own peak rate as `initial_lr`."""
    scale = {"none": 1.0, "sqrt": math.sqrt(num_processes), "linear": float(num_processes)}[config.scale_lr]
    encoder = getattr(model.network, "encoder", torch.nn.Identity())
    in_encoder = {id(parameter) for parameter in encoder.parameters()}
    rest = torch.nn.ParameterDict(
        {n.replace(".", "/"): p for n, p in model.named_parameters() if id(p) not in in_encoder}
    )
    groups = []
    for part, factor in ((encoder, config.encoder_lr_factor), (rest, 1.0)):
        rate = config.lr * factor * scale
        for group in param_groups_weight_decay(part, config.weight_decay):
            if group["params"]:
                groups.append(group | {"lr": rate, "initial_lr": rate})
    return create_optimizer_v2(groups, opt="adamw", lr=config.lr * scale, weight_decay=0.0)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Rate over peak rate in step 0..steps-1: linear up for `warmup` of the steps, then a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's peak rate times `factor`. The rate is a function of the step, so there is nothing to resume."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
