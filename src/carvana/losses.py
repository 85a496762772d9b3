"""Losses on logits, one value per image.

All take logits (N, 1, H, W) and masks (N, 1, H, W) in [0, 1], where a value in between is the share of the
pixel that is car, and return (N,). They are computed in float32 whatever the network's precision.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def bce(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, mean over pixels."""
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1).mean(1)


def soft_dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2)), per image; 0 for an empty mask predicted empty.

    The squares (Milletari et al., V-Net, 2016) put the minimum at p = t for every t; without them a pixel half
    covered by the car would be pushed to 1.
    """
    probs, masks = logits.sigmoid().flatten(1), masks.flatten(1)
    overlap, total = (probs * masks).sum(1), (probs.square() + masks.square()).sum(1)
    return 1 - (2 * overlap + 1) / (total + 1)  # the ones are one pixel: they only matter without any car


LOSSES: dict[str, Loss] = {"bce": bce, "soft_dice": soft_dice}


def weighted_sum(weights: Mapping[str, float]) -> Loss:
    """The sum of named losses times their weights, e.g. `{"bce": 1, "soft_dice": 1}`."""

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        logits, masks = logits.float(), masks.float()
        return sum(weight * LOSSES[name](logits, masks) for name, weight in weights.items())

    return loss
