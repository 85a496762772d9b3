"""The competition's metric: Dice of one image at photo size. Means are over images, never over pixels or batches."""

from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd
import torch

THRESHOLDS = tuple(level / 100 for level in range(1, 100))
DRAWS = 2000  # of cars, for an interval
BEYOND = {"beyond_1px": 1, "beyond_5px": 5}  # pixels from the true contour, by column of an out-of-fold table


def dice(prediction: torch.Tensor, mask: torch.Tensor) -> float:
    """2 |P and M| / (|P| + |M|) of two bool images; 1 if both are empty, as Kaggle scores it."""
    total = (prediction.sum() + mask.sum()).item()
    return 2 * (prediction & mask).sum().item() / total if total else 1.0


def expected_dice(probs: torch.Tensor, mask: torch.Tensor) -> float:
    """Dice of a bool mask with the truth, as far as `probs` knows it: 2 sum(p m) / (sum(p) + sum(m)), 1 if all is 0."""
    overlap, total = probs[mask].sum(dtype=torch.float64), probs.sum(dtype=torch.float64) + mask.sum()
    return (2 * overlap / total).item() if total else 1.0


def dice_curve(probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dice of `probs >= t` for every t of THRESHOLDS: (99,), float64.

    probs: (H, W) in [0, 1]; mask: bool (H, W). One histogram of car and one of other pixels serve all
    thresholds, so that no map needs to be kept for a sweep.
    """
    levels = (probs.reshape(-1) * 100).to(torch.uint8)
    counts = torch.bincount(levels + 128 * mask.reshape(-1).to(torch.uint8), minlength=256).cpu().double()
    above_other, above_car = counts.view(2, 128).flip(1).cumsum(1).flip(1)[:, 1:100]
    total = above_other + above_car + counts[128:].sum()
    return torch.where(total > 0, 2 * above_car / total.clamp(min=1), 1.0)


def errors_beyond(prediction: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The part of 1 - Dice that lies further from the true contour than each of BEYOND; of bool masks (H, W).

    The first pixel is mostly the annotators' choice: two networks that differ there need not differ in what they know.
    """
    far = pixels_from_contour(mask)[prediction != mask]
    total = max(int(prediction.sum()) + int(mask.sum()), 1)
    return {name: int((far > pixels).sum()) / total for name, pixels in BEYOND.items()}


def pixels_from_contour(mask: np.ndarray) -> np.ndarray:
    """Pixels from each pixel to the nearest one on the other side of the contour, 1 beside it: float32 (H, W)."""
    inside, outside = (cv2.distanceTransform(side.view(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask))
    return np.where(mask, inside, outside)


def estimate_mean(values: pd.Series, cars: Sequence[str]) -> dict:
    """`mean` over photos, and its `interval` as `bootstrap_interval` gives it."""
    return {"mean": float(values.mean()), "interval": bootstrap_interval(values.to_numpy(), cars)}


def bootstrap_interval(values: np.ndarray, cars: Sequence[str]) -> list[float]:
    """95 % confidence interval of the mean over photos, (photos,): percentiles of means of cars drawn anew.

    The 16 photos of a car share its mistakes, so that drawing photos would give an interval that is too narrow
    (cluster bootstrap, Field and Welsh 2007). The interval of a paired gain is that of the photos' differences.
    """
    _, car = np.unique(np.asarray(cars), return_inverse=True)
    sums, photos = np.bincount(car, weights=values), np.bincount(car)
    drawn = np.random.default_rng(0).multinomial(len(photos), np.full(len(photos), 1 / len(photos)), size=DRAWS)
    return np.percentile(drawn @ sums / (drawn @ photos), [2.5, 97.5]).tolist()
