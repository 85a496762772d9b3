"""Single training steps of small models on drawn photos; also of two processes, each of which runs this file."""

import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from carvana.config import Config, parse_config
from carvana.device import process_state
from carvana.models import MODELS
from carvana.training.engine import forward_backward, send, update
from carvana.training.learner import Learner, build_learner

if torch.cuda.is_available():
    torch.backends.cudnn.benchmark_limit = 1  # to try ten algorithms for each new shape takes a minute a test

SIZE = (128, 192)
PHOTOS = 8  # of a step, of all processes together


def draw_photos(count: int, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, h, w) of noise with a bright ellipse, which the masks (N, 1, h, w) are 255 in."""
    rows, columns = torch.linspace(-1, 1, size[0])[:, None], torch.linspace(-1, 1, size[1])
    inside = torch.stack([(rows / (0.3 + 0.05 * photo)) ** 2 + (columns / 0.7) ** 2 < 1 for photo in range(count)])
    masks = inside[:, None].to(torch.uint8)
    noise = torch.randint(0, 120, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise + 100 * masks, 255 * masks


def small(architecture: str, **train) -> Config:
    """An experiment with a tiny network and each part that may need gradients of its own."""
    settings = {"encoder": "test_efficientnet", "pretrained": False, "decoder_channels": (8,) * 5, "base_width": 4}
    settings |= {"deep_supervision": True, "stem_channels": 4}
    model = {key: value for key, value in settings.items() if key in MODELS[architecture].options}
    train = {"batch_size": PHOTOS, "micro_batch": 2, "precision": "fp32", "memory_format": "channels_last"} | train
    groups = {"data": {"size": SIZE}, "model": model | {"architecture": architecture}, "train": train}
    return parse_config({"name": architecture} | groups, architecture)


def step(learner: Learner, images: torch.Tensor, masks: torch.Tensor) -> tuple[float, torch.Tensor, bool]:
    """The mean loss, its gradient before clipping (parameters,), and whether the step was taken."""
    parameters = list(learner.model.parameters())
    loss = forward_backward(learner, images, masks).mean().item()
    norm = learner.accelerator.clip_grad_norm_(parameters, math.inf).item()  # which undoes fp16's scale
    gradient = flatten(p.grad for p in parameters if p.grad is not None)
    return loss, gradient, update(learner, norm)


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A copy of all values in a row."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def distance(values: torch.Tensor, expected: torch.Tensor) -> float:
    return ((values - expected).norm() / expected.norm()).item()


def shared_step(architecture: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a step on this process's share of the photos, and how far it moved the averaged weights.

    BatchNorm is in eval mode: its statistics would be of each process's own photos.
    """
    learner = build_learner(small(architecture), pretrained=False)
    for module in learner.model.train().modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    before = flatten(learner.ema.module.parameters())
    state = learner.accelerator
    share = [part[state.process_index :: state.num_processes] for part in draw_photos(PHOTOS)]
    _, gradient, _ = step(learner, *send(share, learner))
    return gradient.cpu(), (flatten(learner.ema.module.parameters()) - before).cpu()


def check_two_processes(folder: Path) -> None:
    """Two processes with half of the photos each take the step of a single one, and end with the same weights.

    On two GPUs, else with gloo on one GPU or the CPU.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([*torchrun, __file__, folder], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    for architecture in MODELS:
        assert all(map(torch.equal, first[architecture], second[architecture])), architecture
        for shared, alone in zip(first[architecture], shared_step(architecture), strict=True):
            assert distance(shared, alone) < 0.01, architecture


if __name__ == "__main__":
    state = process_state(backend=None if torch.cuda.device_count() > 1 else "gloo")
    steps = {architecture: shared_step(architecture) for architecture in MODELS}
    torch.save(steps, Path(sys.argv[1]) / f"{state.process_index}.pt")
    state.destroy_process_group()
