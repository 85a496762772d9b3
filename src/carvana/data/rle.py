"""Run-length encoding of masks as Kaggle reads it: "start length start length ...", row by row, from 1."""

import numpy as np
import torch

SET = np.uint64(0x0101010101010101)  # eight pixels in a row, each a byte, all set


def rle_encode(mask: np.ndarray) -> str:
    """The runs of a `bool (height, width)` mask; "" for an empty one.

    Raises TypeError for any other dtype (a threshold is the caller's to choose), ValueError for another number of axes.
    """
    if mask.dtype != bool:
        raise TypeError(f"a mask is bool, this one is {mask.dtype}: compare it with a threshold first")
    if mask.ndim != 2:
        raise ValueError(f"a mask is (height, width), this one has the shape {mask.shape}")
    return write_runs(find_edges(mask.ravel()))


def encode_tensor(mask: torch.Tensor) -> str:
    """`rle_encode` of a `bool (height, width)` tensor: from a GPU its edges are copied, not its pixels."""
    return rle_encode(mask.numpy()) if mask.device.type == "cpu" else write_runs(edges_on_device(mask).cpu().numpy())


def edges_on_device(mask: torch.Tensor) -> torch.Tensor:
    """As `find_edges`, by operations that a GPU is fast at."""
    flat = mask.flatten()
    return torch.cat([flat[:1], flat[1:] != flat[:-1], flat[-1:]]).nonzero()[:, 0]


def find_edges(flat: np.ndarray) -> np.ndarray:
    """Positions from 0 where a flat mask changes, pixels outside it being unset: int64 `(2 * runs,)`.

    Eight pixels are looked at together, one by one only where these are not all alike and as the eight before.
    """
    padded = np.pad(flat, (0, -flat.size % 8)) if flat.size % 8 else flat
    words = padded.view(np.uint64)
    busy = (words != 0) & (words != SET)
    busy[1:] |= words[1:] != words[:-1]
    busy[:1] = True
    pixels = (8 * np.flatnonzero(busy)[:, None] + np.arange(8)).ravel()
    before = padded[pixels - 1]
    before[:1] = False
    edges = pixels[padded[pixels] != before]
    return np.append(edges, flat.size) if len(edges) % 2 else edges


def write_runs(edges: np.ndarray) -> str:
    """The text for runs whose starts and ends, in turn, are at these positions."""
    runs = edges + 1
    runs[1::2] -= runs[::2]
    return ("%d " * len(runs) % tuple(runs.tolist()))[:-1]


def rle_decode(rle: str, size: tuple[int, int]) -> np.ndarray:
    """The `bool (height, width)` mask that `rle_encode` was given; ValueError as in `parse_rle`."""
    height, width = size
    starts, lengths = parse_rle(rle, height * width)
    edges = np.stack([starts - 1, starts - 1 + lengths], axis=1).ravel()
    values = np.arange(len(edges) + 1) % 2 == 1
    return np.repeat(values, np.diff(edges, prepend=0, append=height * width)).reshape(size)


def parse_rle(rle: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (from 1) and lengths of the runs, both int64 `(runs,)`.

    Raises ValueError, naming the first wrong pair, for anything but pairs of whole numbers above zero, ascending, not
    overlapping and within `pixels`. A run that touches the one before it is fine.
    """
    if rle.encode().translate(None, b"0123456789 "):
        raise ValueError("holds something else than whole numbers and spaces")
    # Only the binary mode of `fromstring` is deprecated; blank text would read as one zero.
    numbers = np.fromstring(rle, np.int64, sep=" ") if rle.strip() else np.empty(0, np.int64)
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers do not make pairs of start and length")
    starts, lengths = numbers[::2], numbers[1::2]
    _refuse(starts < 1, numbers, "starts before pixel 1")
    _refuse(lengths < 1, numbers, "is empty")
    _refuse(lengths > pixels - starts + 1, numbers, f"ends past the last pixel, {pixels}")
    _refuse(starts[1:] <= starts[:-1], numbers[2:], "does not start after the pair before it", first=2)
    _refuse(starts[1:] < starts[:-1] + lengths[:-1], numbers[2:], "overlaps the pair before it", first=2)
    return starts, lengths


def _refuse(wrong: np.ndarray, numbers: np.ndarray, fault: str, first: int = 1) -> None:
    if wrong.any():
        pair = int(wrong.argmax())
        raise ValueError(f'pair {pair + first}, "{numbers[2 * pair]} {numbers[2 * pair + 1]}", {fault}')
