"""Test-time augmentation: the mean over views of an image, each undone. The only sigmoid of prediction is here.

A view is named by its steps, in order, joined by `+`: `identity`; `hflip`, the mirror image; `scale0.75`, resized (0.5
to 2).
"""

import re
from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F

from carvana.errors import InputError

Network = Callable[[torch.Tensor], torch.Tensor]
"""uint8 images (N, 3, h, w) to maps (N, C, h, w) float32."""
Undo = Callable[[torch.Tensor], torch.Tensor]
View = Callable[[torch.Tensor], tuple[torch.Tensor, Undo]]
"""Images (N, 3, H, W) to a view of them (N, 3, h, w), and what brings maps (N, 1, h, w) of it back to (H, W)."""

FORMS = "identity, hflip, scale0.75 (0.5 to 2), or several of them joined by +"


def identity(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
    return images, lambda maps: maps


def hflip(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
    return images.flip(-1), lambda maps: maps.flip(-1)


def scale(images: torch.Tensor, factor: float) -> tuple[torch.Tensor, Undo]:
    """Both sides `factor` times as long, to the nearest pixel."""
    size = images.shape[-2:]
    resized = _resize(images.float(), [max(1, round(side * factor)) for side in size])
    if not images.is_floating_point():
        resized = resized.round().clamp(0, 255).to(images.dtype)
    return resized, lambda maps: _resize(maps, size)


def _resize(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    shrinks = size[0] < images.shape[-2]
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def parse_view(name: str) -> View:
    """The view of that name. Raises ValueError if its form is unknown or a number out of range."""
    steps = [_parse_step(step) for step in name.split("+")]

    def view(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
        undos = []
        for step in steps:
            images, undo = step(images)
            undos.append(undo)
        return images, lambda maps: reduce(lambda undone, undo: undo(undone), reversed(undos), maps)

    return view


def _parse_step(step: str) -> View:
    if step in (plain := {"identity": identity, "hflip": hflip}):
        return plain[step]
    if match := re.fullmatch(r"scale(\d+(?:\.\d+)?)", step):
        factor = float(match[1])
        if 0.5 <= factor <= 2 and factor != 1:
            return lambda images: scale(images, factor)
    raise ValueError(f"no view is named {step}; choose from none, {FORMS}")


def parse_views(tta: str) -> list[str]:
    """`none` is the photo as it is, `hflip` adds its mirror image; several are joined by commas.

    Raises InputError, in one line, for an unknown view.
    """
    names = ["identity"] + [name for name in tta.split(",") if name not in ("none", "identity", "")]
    for name in names:
        try:
            parse_view(name)
        except ValueError as error:
            raise InputError(f"--tta {tta}: {error}") from None
    return list(dict.fromkeys(names))


class TTA:
    """Uint8 images (N, 3, H, W) to the mean probabilities (N, 1, H, W) float32 of views of them."""

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], views: Sequence[str] = ("identity",)):
        self.model, self.views = model, [parse_view(name) for name in views]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.each(images).mean(1, keepdim=True)

    def each(self, images: torch.Tensor) -> torch.Tensor:
        """The probabilities of each view, undone, one channel a view: (N, views, H, W)."""
        shown = (view(images) for view in self.views)
        return torch.cat([undo(to_probs(self.model(images).float())) for images, undo in shown], 1)


def to_probs(logits: torch.Tensor) -> torch.Tensor:
    """NaN where a logit is infinite: an overflow is no sure car."""
    return logits.sigmoid().add_(logits, alpha=0)
