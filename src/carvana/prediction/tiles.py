"""A map of a large photo, made finer where the contour runs: tiles that overlap, blended into the map of the whole."""

import math
from collections.abc import Callable
from itertools import product

import cv2
import numpy as np

DOUBTFUL = 0.02, 0.98  # probabilities between which a pixel may be on the contour


def blend_tiles(
    predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, whole: np.ndarray, side: int, reach: int
) -> np.ndarray:
    """The probabilities (h, w) of a photo: those of the `whole`, and within `reach` of its contour those of tiles.

    Tiles are squares of `side` pixels, or less. Elsewhere they count for nothing: a tile may show nothing but a door,
    which could as well be a wall.
    """
    near = cv2.dilate(cv2.inRange(whole, *DOUBTFUL), np.ones((2 * reach + 1,) * 2, np.uint8))
    near, probs = cv2.blur(near, (reach, reach)), whole.copy()
    for (rows, row_weights), (columns, column_weights) in product(*(windows(size, side) for size in whole.shape)):
        place = rows, columns
        if near[place].any():
            weights = row_weights[:, None] * column_weights * near[place] / np.float32(255)
            probs[place] += weights * (predict(image[place]) - whole[place])
    return probs


def windows(length: int, side: int) -> list[tuple[slice, np.ndarray]]:
    """Where tiles lie along one side of a photo, half over each other, and their weights, which sum to 1 everywhere."""
    side = min(side, length)
    starts = np.linspace(0, length - side, math.ceil(2 * (length - side) / side) + 1).round().astype(int)
    ramp, total = np.minimum(np.arange(side), np.arange(side)[::-1]) + np.float32(1), np.zeros(length, np.float32)
    for start in starts:
        total[start : start + side] += ramp
    return [(slice(start, start + side), ramp / total[start : start + side]) for start in starts]
