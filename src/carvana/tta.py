"""Test-time augmentation: the mean over views of an image, each undone. The only sigmoid is here.

A view is named by its steps, in order, joined by `+`: `identity`; `hflip`, the mirror image; `scale0.75`, resized (0.5
to 2); `shift16` or `shift8x24`, moved so many pixels (0 to 31, at network size) down and right, the same without `x`.
"""

import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F

from carvana.errors import InputError
from carvana.geometry import Padding, reflect_indices, unpad

Predictor = Callable[[torch.Tensor], torch.Tensor]
Undo = Callable[[torch.Tensor], torch.Tensor]
View = Callable[[torch.Tensor], tuple[torch.Tensor, Undo]]
"""Images (N, 3, H, W) to what is seen of them (N, 3, h, w), and what brings maps (N, 1, h, w) of it back to (H, W)."""
Mean = Literal["probs", "logits"]

GRID = 32  # the coarsest stride of the encoders: a shift by as much would change nothing
LEAST = 0.5 / 255  # a probability nearer to 0 or 1 than this counts as this where only uint8 is left of it
FORMS = "identity, hflip, scale0.75 (0.5 to 2), shift16 or shift8x24 (0 to 31), or several of them joined by +"


def identity(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
    return images, lambda maps: maps


def hflip(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
    return images.flip(-1), lambda maps: maps.flip(-1)


def scale(images: torch.Tensor, factor: float) -> tuple[torch.Tensor, Undo]:
    """Both sides `factor` times as long, to the nearest pixel."""
    size = images.shape[-2:]
    seen = _resize(images.float(), [max(1, round(side * factor)) for side in size])
    if not images.is_floating_point():
        seen = seen.round().clamp(0, 255).to(images.dtype)
    return seen, lambda maps: _resize(maps, size)


def _resize(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(
        images, tuple(size), mode="bilinear", align_corners=False, antialias=size[0] < images.shape[-2]
    )


def shift(images: torch.Tensor, down: int, right: int) -> tuple[torch.Tensor, Undo]:
    """Moved, on a canvas larger by GRID along each axis that moves: margins are mirrored, and no pixel is lost."""
    height, width = images.shape[-2:]
    padding = Padding(down, -down % GRID, right, -right % GRID)
    rows = reflect_indices(height, padding.top, padding.bottom).to(images.device)
    columns = reflect_indices(width, padding.left, padding.right).to(images.device)
    return images.index_select(-2, rows).index_select(-1, columns), lambda maps: unpad(maps, padding)


def parse_view(name: str) -> View:
    """The view of that name. Raises ValueError if its form is unknown or a number out of range."""
    steps = [_parse_step(step) for step in name.split("+")]

    def view(images: torch.Tensor) -> tuple[torch.Tensor, Undo]:
        undos = []
        for step in steps:
            images, undo = step(images)
            undos.append(undo)
        return images, lambda maps: reduce(lambda seen, undo: undo(seen), reversed(undos), maps)

    return view


def _parse_step(step: str) -> View:
    if step in (plain := {"identity": identity, "hflip": hflip}):
        return plain[step]
    if match := re.fullmatch(r"scale(\d+(?:\.\d+)?)", step):
        factor = float(match[1])
        if 0.5 <= factor <= 2 and factor != 1:
            return lambda images: scale(images, factor)
    if match := re.fullmatch(r"shift(\d{1,3})(?:x(\d{1,3}))?", step):
        down, right = int(match[1]), int(match[2] or match[1])
        if max(down, right) < GRID and max(down, right) > 0:
            return lambda images: shift(images, down, right)
    raise ValueError(f"no view is named {step}; choose from none, {FORMS}")


def parse_views(tta: str) -> list[str]:
    """`none` is the photo as it is, `hflip` adds its mirror image; several are joined by commas.

    Raises InputError, in one line, for a view that is not there.
    """
    names = ["identity"] + [name for name in tta.split(",") if name not in ("none", "identity", "")]
    for name in names:
        try:
            parse_view(name)
        except ValueError as error:
            raise InputError(f"--tta {tta}: {error}") from None
    return list(dict.fromkeys(names))


class TTA:
    """A predictor: uint8 images (N, 3, H, W) to probabilities (N, 1, H, W) float32.

    mean: of the views' probabilities, or of their logits. together: views of equal size go through the model as one
    batch; the results are the same, and a GPU is busier, with as many times the memory.
    """

    def __init__(
        self, model: Callable[[torch.Tensor], torch.Tensor], views: Sequence[str] = ("identity",),
        mean: Mean = "probs", together: bool = False,
    ):  # fmt: skip
        self.model, self.views, self.mean, self.together = model, [parse_view(name) for name in views], mean, together

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.mean == "probs":
            return self.each(images).mean(1, keepdim=True)
        return torch.cat(self._maps(images, lambda logits: logits), 1).mean(1, keepdim=True).sigmoid()

    def each(self, images: torch.Tensor) -> torch.Tensor:
        """The probabilities of each view, undone, one channel a view: (N, views, H, W)."""
        return torch.cat(self._maps(images, torch.sigmoid), 1)

    def _maps(self, images: torch.Tensor, squash: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """A map (N, 1, H, W) for each view: `squash` of its logits, undone."""
        seen, undos = zip(*(view(images) for view in self.views), strict=True)
        maps = zip(undos, self._logits(seen), strict=True)
        return [undo(squash(logits.float())) for undo, logits in maps]

    def _logits(self, seen: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self.together:
            return [self.model(images) for images in seen]
        logits = {}
        for size in dict.fromkeys(images.shape for images in seen):
            batch = torch.cat([images for images in seen if images.shape == size])
            logits[size] = iter(self.model(batch).split(size[0]))
        return [next(logits[images.shape]) for images in seen]


def mean_of_views(probs: torch.Tensor, mean: Mean) -> torch.Tensor:
    """What `TTA` makes of probabilities (views, ...) in [0, 1], where only these are left: (...)."""
    return probs.mean(0) if mean == "probs" else probs.logit(LEAST).mean(0).sigmoid()
