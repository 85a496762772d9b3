"""The competition's metric: Dice of one image at photo size. Means are over images, never over pixels or batches."""

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
