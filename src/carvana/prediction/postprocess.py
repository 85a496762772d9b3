"""What may be mended in a mask after the threshold: small holes, small parts. Off unless out-of-fold Dice gains."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class PostProcess:
    """Of a mask, bool (H, W): fills holes of fewer than `holes` pixels, then drops parts of fewer than `parts`."""

    holes: int = 0
    parts: int = 0

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        return drop_parts(fill_holes(mask, self.holes), self.parts)

    def scaled(self, factor: float) -> "PostProcess":
        """The same for photos of `factor` times as many pixels."""
        return PostProcess(round(self.holes * factor), round(self.parts * factor))


AS_IT_IS = PostProcess()


def fill_holes(mask: np.ndarray, below: int) -> np.ndarray:
    """Fills what the car, by 8 neighbours, encloses on fewer than `below` pixels; what touches the border is open."""
    if below <= 1:
        return mask
    count, labels, stats = _components(~mask, connectivity=4)
    left, top, width, height, area = stats.T
    inside = (left > 0) & (top > 0) & (left + width < mask.shape[1]) & (top + height < mask.shape[0])
    return mask | (inside & (area < below) & (np.arange(count) > 0))[labels]


def drop_parts(mask: np.ndarray, below: int) -> np.ndarray:
    """Drops parts, connected by 8 neighbours, of fewer than `below` pixels."""
    if below <= 1:
        return mask
    count, labels, stats = _components(mask, connectivity=8)
    return ((stats[:, cv2.CC_STAT_AREA] >= below) & (np.arange(count) > 0))[labels]


def part_sizes(mask: np.ndarray) -> list[int]:
    """Pixels of each part of a mask, connected by 8 neighbours."""
    return _components(mask, connectivity=8)[2][1:, cv2.CC_STAT_AREA].tolist()


def _components(region: np.ndarray, connectivity: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many labels, labels (H, W) with 0 outside the region, and of each label left, top, width, height, area."""
    return cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=connectivity)[:3]
