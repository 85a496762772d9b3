"""Runs of masks that are tensors: on a GPU they are found there, and nothing else of a mask is copied."""

import torch

from carvana.rle import rle_encode, write_runs


def encode_tensor(mask: torch.Tensor) -> str:
    """`rle_encode` of a `bool (height, width)` mask on any device."""
    return rle_encode(mask.numpy()) if mask.device.type == "cpu" else write_runs(find_edges(mask).cpu().numpy())


def find_edges(mask: torch.Tensor) -> torch.Tensor:
    """Positions from 0 where a flattened bool mask changes, int64 on its device: starts and ends of runs in turn."""
    flat = mask.flatten()
    return torch.cat([flat[:1], flat[1:] != flat[:-1], flat[-1:]]).nonzero()[:, 0]
