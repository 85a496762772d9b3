"""Test-time augmentation: the mean probability over views of an image, each undone. The only sigmoid is here."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from carvana.errors import InputError

Predictor = Callable[[torch.Tensor], torch.Tensor]


class View(NamedTuple):
    """A way to look at images (N, 3, H, W), and what brings maps (N, 1, H, W) seen that way back."""

    apply: Callable[[torch.Tensor], torch.Tensor]
    undo: Callable[[torch.Tensor], torch.Tensor]


def _same(images: torch.Tensor) -> torch.Tensor:
    return images


def _mirror(images: torch.Tensor) -> torch.Tensor:
    return images.flip(-1)


VIEWS = {"identity": View(_same, _same), "hflip": View(_mirror, _mirror)}


def parse_views(tta: str) -> list[str]:
    """`none` is the photo as it is, `hflip` adds its mirror image; several are joined by commas."""
    names = ["identity"] + [name for name in tta.split(",") if name not in ("none", "identity", "")]
    if unknown := [name for name in names if name not in VIEWS]:
        raise InputError(f"--tta {tta}: no view is named {unknown[0]}; choose from none, {', '.join(VIEWS)}")
    return list(dict.fromkeys(names))


class TTA:
    """A predictor: uint8 images (N, 3, H, W) to probabilities (N, 1, H, W) float32."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], views: list[str] = ("identity",)):
        self.model, self.views = model, [VIEWS[name] for name in views]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        total = sum(view.undo(self.model(view.apply(images)).float().sigmoid()) for view in self.views)
        return total / len(self.views)
