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


def fill_holes(mask: np.ndarray, below: int) -> np.ndarray:
    """Fills what the car, by 8 neighbours, encloses on fewer than `below` pixels; what touches the border is open."""
    if below <= 1:
        return mask
    _, labels, stats = _components(~mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < below
    return mask | (_inside(stats, mask.shape) & small)[labels]


def drop_parts(mask: np.ndarray, below: int) -> np.ndarray:
    """Drops parts, connected by 8 neighbours, of fewer than `below` pixels."""
    if below <= 1:
        return mask
    count, labels, stats = _components(mask, connectivity=8)
    return ((stats[:, cv2.CC_STAT_AREA] >= below) & (np.arange(count) > 0))[labels]


def part_sizes(mask: np.ndarray) -> list[int]:
    """Pixels of each part of a mask, connected by 8 neighbours."""
    return _components(mask, connectivity=8)[2][1:, cv2.CC_STAT_AREA].tolist()


def hole_sizes(mask: np.ndarray) -> list[int]:
    """Pixels of each hole of a mask: what the car, by 8 neighbours, encloses and does not touch the border."""
    _, _, stats = _components(~mask, connectivity=4)
    return stats[_inside(stats, mask.shape), cv2.CC_STAT_AREA].tolist()


def _inside(stats: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which labels, 0 aside, do not touch the border."""
    left, top, width, height, _ = stats.T
    inside = (left > 0) & (top > 0) & (left + width < size[1]) & (top + height < size[0])
    return inside & (np.arange(len(stats)) > 0)


def _components(region: np.ndarray, connectivity: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many labels, labels (H, W) with 0 outside the region, and of each label left, top, width, height, area."""
    return cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=connectivity)[:3]
