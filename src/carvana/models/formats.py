"""Memory formats: whether a network's numbers lie pixel by pixel (channels_last) or channel by channel."""

import math
import time
from copy import deepcopy

import torch
from accelerate.utils.memory import clear_device_cache

from carvana.device import Device
from carvana.errors import is_out_of_memory
from carvana.models.network import Segmenter

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
STEPS = 3


def choose_format(model: Segmenter, device: Device, images: torch.Size) -> str:
    """The format in which a copy of the model computes such images faster; forward and, in training mode, backward.

    On a CPU it is channels_last. On a GPU it is measured: the convolutions of cuDNN mostly gain by channels_last, those
    with a group a channel, in fp16 on a T4, may lose.
    """
    if device.device.type != "cuda":
        return "channels_last"
    torch.backends.cudnn.benchmark = True  # as when it is trained or predicts
    seconds = {name: _seconds(model, device, images, memory_format) for name, memory_format in FORMATS.items()}
    return min(seconds, key=seconds.get)


def _seconds(model: Segmenter, device: Device, shape: torch.Size, memory_format: torch.memory_format) -> float:
    """Infinitely many where memory does not suffice: the caller may do with fewer images."""
    try:
        return _measure(model, device, shape, memory_format)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    clear_device_cache(garbage_collection=True)  # outside of the block, nothing holds the failed step's tensors
    return math.inf


def _measure(model: Segmenter, device: Device, shape: torch.Size, memory_format: torch.memory_format) -> float:
    model = deepcopy(model).lay_out(device.device, memory_format)
    images = torch.zeros(shape, dtype=torch.uint8, device=device.device)
    images = images.contiguous(memory_format=torch.channels_last)  # as loaders give them
    for step in range(1 + STEPS):
        if step == 1:  # after one to warm up
            torch.accelerator.synchronize(device.device)
            started = time.monotonic()
        with torch.set_grad_enabled(model.training), device.autocast():
            logits = model(images)
        if model.training:
            logits.float().mean().backward()
    torch.accelerator.synchronize(device.device)
    return time.monotonic() - started
