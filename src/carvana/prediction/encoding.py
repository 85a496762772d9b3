"""What comes out of the networks, brought to photo size: a batch's maps, or its masks as runs."""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from carvana.data.geometry import Fit, Size
from carvana.data.rle import encode_tensor
from carvana.prediction.postprocess import AS_IT_IS, PostProcess

Describe = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], Any]
"""Called for each photo with the first mix's probabilities and mask and the other mixes' masks, all (H, W)."""


class Encoded(NamedTuple):
    image_id: str
    size: Size  # of the photo
    rle: str
    description: Any = None


class Batch(NamedTuple):
    """A batch out of the networks: for each mix, and each fit in it, the weighted sum of the members."""

    image_ids: list[str]
    sums: list[dict[Fit, torch.Tensor]]  # (N, C, h, w) on the device
    sizes: list[Size]
    masks: list[torch.Tensor | None]
    images: dict[Fit, torch.Tensor]  # what the networks saw

    def maps(self, index: int) -> list[torch.Tensor]:
        """Of a photo, for each mix: (C, H, W) at photo size."""
        return [undo_fits(sums.items(), index, self.sizes[index]) for sums in self.sums]


def undo_fits(parts: Iterable[tuple[Fit, torch.Tensor]], index: int, size: Size) -> torch.Tensor:
    """A photo's map at photo size, the sum of its parts in each fit: (C, H, W)."""
    undone = (fit.undo(maps[index : index + 1], size) for fit, maps in parts)
    return reduce(torch.add, undone)[0]  # `sum` would add the first one to 0


def encode_batch(
    batch: Batch, threshold: float, postprocess: PostProcess, describe: Describe | None = None
) -> list[Encoded]:
    """Brings a batch to photo size, cuts it at the threshold, mends the first mix's masks, and encodes these."""

    def encode(index: int, image_id: str, size: Size) -> Encoded:
        maps = (undo_fits(sums.items(), index, size)[0] for sums in batch.sums)  # at photo size two at a time
        first = next(maps)
        mask, masks = cut(first, threshold), [cut(probs, threshold) for probs in maps]
        if postprocess != AS_IT_IS:
            mask = torch.from_numpy(postprocess(mask.cpu().numpy())).to(first.device)
        return Encoded(image_id, size, encode_tensor(mask), describe and describe(first, mask, masks))

    with torch.inference_mode():
        return list(map(encode, range(len(batch.sizes)), batch.image_ids, batch.sizes))


def cut(probs: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where a map reaches the threshold; NumPy is three times as fast there on one core."""
    if probs.device.type != "cpu":
        return probs >= threshold
    return torch.from_numpy(probs.numpy() >= np.float32(threshold))
