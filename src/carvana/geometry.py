"""Between photo size and network size, and back. Sizes are (height, width)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from carvana.errors import InputError

Size = tuple[int, int]


def reflect_indices(length: int, before: int, after: int) -> torch.Tensor:
    """Positions 0..length-1 with mirrored ones on both sides; the edge pixel is not repeated.

    Unlike `F.pad(mode="reflect")` a margin may be wider than the image (it is mirrored again), and any dtype
    can be gathered with it, so that images are padded while they are still uint8.
    """
    period = max(2 * (length - 1), 1)
    positions = torch.arange(-before, length + after) % period
    return torch.where(positions < length, positions, period - positions)


@dataclass(frozen=True)
class Padding:
    """Pixels added on each side."""

    top: int
    bottom: int
    left: int
    right: int


def centered_padding(size: Size, target: Size) -> Padding:
    """What brings `size` to `target`, half on each side."""
    (height, width), (target_height, target_width) = size, target
    top, left = (target_height - height) // 2, (target_width - width) // 2
    return Padding(top, target_height - height - top, left, target_width - width - left)


def pad_to_multiple(images: torch.Tensor, multiple: int, border: int = 0) -> tuple[torch.Tensor, Padding]:
    """Mirrors images (..., H, W) so that both sides are multiples, with at least `border` pixels on each side."""
    size = height, width = images.shape[-2:]
    padding = centered_padding(size, tuple(-(-(side + 2 * border) // multiple) * multiple for side in size))
    if padding == Padding(0, 0, 0, 0):
        return images, padding
    rows = reflect_indices(height, padding.top, padding.bottom).to(images.device)
    columns = reflect_indices(width, padding.left, padding.right).to(images.device)
    return images.index_select(-2, rows).index_select(-1, columns), padding


def unpad(images: torch.Tensor, padding: Padding) -> torch.Tensor:
    """Undoes `pad_to_multiple`."""
    height, width = images.shape[-2:]
    return images[..., padding.top : height - padding.bottom, padding.left : width - padding.right]


class Window(NamedTuple):
    """A part of a photo in its proportions: `share` of both sides, from (top, left), which are shares of them too."""

    top: float = 0.0
    left: float = 0.0
    share: float = 1.0

    def slices(self, size: Size) -> tuple[slice, slice]:
        """Rows and columns in a photo of that size; at least one of each."""
        first = [min(round(start * side), side - 1) for start, side in zip((self.top, self.left), size, strict=True)]
        length = [max(1, round(self.share * side)) for side in size]
        return tuple(slice(a, min(a + n, side)) for a, n, side in zip(first, length, size, strict=True))


WHOLE = Window()


def window_around(mask: np.ndarray, margin: float) -> Window:
    """The least window that holds a mask, bool (H, W), and `margin` of its own side more; the photo if it is empty."""
    filled = mask.any(1), mask.any(0)
    if not filled[0].any():
        return WHOLE
    low = np.array([along.argmax() / len(along) for along in filled])
    high = 1 - np.array([along[::-1].argmax() / len(along) for along in filled])
    share = min(1.0, (1 + margin) * (high - low).max().item())
    return Window(*((low + high - share) / 2).clip(0, 1 - share).tolist(), share)


def shrink_by_area(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (h, w): each pixel becomes the mean of what it covers."""
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)


def shrink_photo(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (h, w, 3): bilinear with antialiasing, within 0.2 of 255 of the mean by area (1918x1280 to 1152x768).

    On one core that takes 4.1 ms instead of OpenCV's 10.0: loading is what slows prediction down on a CPU.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # channels_last: no byte is moved
    shrunk = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    return np.ascontiguousarray(shrunk[0].permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Fit:
    """How photos are brought to the network's size: `resize`, or `pad` with mirrored borders (1918 to 1920).

    boxes_from: the experiment that says which window of a photo is seen; none sees it whole. The window, and the
    margin around the car in it, are of one photo each: `through` gives the fit for it.
    """

    size: Size
    how: Literal["resize", "pad"] = "resize"
    boxes_from: str | None = None
    margin: float = 0.1
    window: Window = WHOLE

    def through(self, window: Window) -> "Fit":
        return replace(self, window=window)

    @property
    def least(self) -> Size | None:
        """The size of a photo that is not enlarged by this; None if no other than its own will do."""
        return None if self.how == "pad" else tuple(math.ceil(side / self.window.share) for side in self.size)

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) at photo size to network size."""
        return self._fit(image, shrink_photo)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """bool (h, w) at photo size to uint8 coverage at network size: 255 times the share of each pixel that is car.

        Hard masks at 256x384 cap Dice at 0.9966, coverage at 0.9993 (60 true masks shrunk and brought back).
        """
        return self._fit(mask.astype(np.uint8) * 255, shrink_by_area)

    def like(self, photo_size: Size) -> "Fit":
        """For photos of any shape: resized in their proportions to about as many pixels, sides multiples of 32."""
        scale = math.sqrt(math.prod(self.size) / math.prod(photo_size))
        return Fit(tuple(max(1, round(side * scale / 32)) * 32 for side in photo_size))

    def undo(self, probs: torch.Tensor, photo_size: Size) -> torch.Tensor:
        """Probabilities (N, 1, h, w) at network size to photo size; outside the window they are 0."""
        if self.window != WHOLE:
            rows, columns = self.window.slices(photo_size)
            whole = probs.new_zeros(*probs.shape[:2], *photo_size)
            inside = whole[..., rows, columns]
            inside[:] = self.through(WHOLE).undo(probs, inside.shape[-2:])
            return whole
        if self.how == "pad":
            return unpad(probs, centered_padding(photo_size, self.size))
        if probs.device.type != "cpu":
            return F.interpolate(probs, size=photo_size, mode="bilinear", align_corners=False)
        # The same to 4e-5 by OpenCV, on one core 0.7 ms instead of 3.8 for 1918 x 1280.
        whole = probs.new_empty(*probs.shape[:2], *photo_size)
        for some, place in zip(probs.flatten(0, 1).numpy(), whole.flatten(0, 1).numpy(), strict=True):
            cv2.resize(some, photo_size[::-1], place, interpolation=cv2.INTER_LINEAR)
        return whole

    def _fit(self, pixels: np.ndarray, shrink: Callable[[np.ndarray, Size], np.ndarray]) -> np.ndarray:
        height, width = self.size
        pixels = pixels[self.window.slices(pixels.shape[:2])]
        if self.how == "resize":
            shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
            return shrink(pixels, self.size) if shrinks else cv2.resize(pixels, (width, height))
        if pixels.shape[0] > height or pixels.shape[1] > width:
            photo = f"{pixels.shape[0]}x{pixels.shape[1]}"
            raise InputError(f"data.size: a photo of {photo} does not fit into {height}x{width}: use data.fit=resize")
        p = centered_padding(pixels.shape[:2], self.size)
        return cv2.copyMakeBorder(pixels, p.top, p.bottom, p.left, p.right, cv2.BORDER_REFLECT_101)
