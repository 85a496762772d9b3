"""Labels beside a submission: how sure an ensemble is of each mask, and where its networks do not agree."""

import torch

from carvana.data.rle import encode_tensor
from carvana.evaluation.metrics import dice, expected_dice


def describe(probs: torch.Tensor, mask: torch.Tensor, masks: list[torch.Tensor]) -> tuple[float, float, str]:
    """`expected_dice`, `agreement` and `disputed` of a photo, all (H, W); `masks` are each network's, none if alone."""
    if not masks:
        return expected_dice(probs, mask), 1.0, ""
    agreement = sum(dice(each, mask) for each in masks) / len(masks)
    stacked = torch.stack(masks)
    return expected_dice(probs, mask), agreement, encode_tensor(stacked.any(0) & ~stacked.all(0))
