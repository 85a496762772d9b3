"""The competition's metric: Dice of one image at photo size. Means are over images, never over pixels or batches."""

from collections.abc import Sequence

import numpy as np
import torch

THRESHOLDS = tuple(level / 100 for level in range(1, 100))


def dice(prediction: torch.Tensor, mask: torch.Tensor) -> float:
    """2 |P and M| / (|P| + |M|) of two bool images; 1 if both are empty, as Kaggle scores it."""
    total = (prediction.sum() + mask.sum()).item()
    return 2 * (prediction & mask).sum().item() / total if total else 1.0


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


def bootstrap_interval(values: np.ndarray, cars: Sequence[str], draws: int = 2000, seed: int = 0) -> list[float]:
    """95 % confidence interval of the mean over photos, (photos,): percentiles of means of cars drawn anew.

    The 16 photos of a car share its mistakes, so that drawing photos would give an interval that is too narrow
    (cluster bootstrap, Field and Welsh 2007). The interval of a paired gain is that of the photos' differences.
    """
    _, car = np.unique(np.asarray(cars), return_inverse=True)
    sums, photos = np.bincount(car, weights=values), np.bincount(car)
    drawn = np.random.default_rng(seed).multinomial(len(photos), np.full(len(photos), 1 / len(photos)), size=draws)
    return np.percentile(drawn @ sums / (drawn @ photos), [2.5, 97.5]).tolist()
