"""Labels beside a submission: how sure an ensemble is of each mask, where its networks do not agree; soft masks."""

from collections.abc import Collection

import torch

from carvana.data.labels import LABELS, SOFT
from carvana.data.rle import encode_tensor
from carvana.data.soft import encode_soft
from carvana.evaluation.metrics import dice, expected_dice


def describe_kinds(
    kinds: Collection[str], probs: torch.Tensor, mask: torch.Tensor, masks: list[torch.Tensor]
) -> dict[str, object]:
    """What rows of these kinds hold beside the mask: of LABELS what `describe` gives, of SOFT the PNG."""
    facts = {LABELS: describe(probs, mask, masks)} if LABELS in kinds else {}
    return facts | ({SOFT: encode_soft(probs)} if SOFT in kinds else {})


def describe(probs: torch.Tensor, mask: torch.Tensor, masks: list[torch.Tensor]) -> tuple[float, float, str]:
    """`expected_dice`, `agreement` and `disputed` of a photo, all (H, W); `masks` are each network's, none if alone."""
    if not masks:
        return expected_dice(probs, mask), 1.0, ""
    agreement = sum(dice(each, mask) for each in masks) / len(masks)
    stacked = torch.stack(masks)
    return expected_dice(probs, mask), agreement, encode_tensor(stacked.any(0) & ~stacked.all(0))
