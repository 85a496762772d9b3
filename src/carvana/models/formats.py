"""Memory formats: whether a network's numbers lie pixel by pixel (channels_last) or channel by channel."""

import time
from copy import deepcopy

import torch
from torch import nn

from carvana.device import Device

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
STEPS = 3


def choose_format(model: nn.Module, device: Device, images: torch.Size) -> str:
    """The format in which a copy of the model computes such images faster; forward and, in training mode, backward.

    On a CPU it is channels_last. On a GPU it is measured: the convolutions of cuDNN mostly gain by channels_last, those
    with a group a channel, in fp16 on a T4, may lose.
    """
    if device.device.type != "cuda":
        return "channels_last"
    seconds = {name: _seconds(model, device, images, memory_format) for name, memory_format in FORMATS.items()}
    return min(seconds, key=seconds.get)


def _seconds(model: nn.Module, device: Device, shape: torch.Size, memory_format: torch.memory_format) -> float:
    model = deepcopy(model).to(device.device, memory_format=memory_format)
    images = torch.zeros(shape, dtype=torch.uint8, device=device.device).contiguous(memory_format=memory_format)
    for step in range(1 + STEPS):
        if step == 1:  # after one to warm up
            torch.accelerator.synchronize()
            started = time.monotonic()
        with torch.set_grad_enabled(model.training), device.autocast():
            logits = model(images)
        if model.training:
            logits.float().mean().backward()
    torch.accelerator.synchronize()
    return time.monotonic() - started
