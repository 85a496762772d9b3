"""A sample of undecided pixels of many photos, from which the Dice of any weighting of the candidates follows.

A candidate is an experiment seen through one view. Of its map at photo size, 8 bits a pixel are kept, and only of
pixels that some weighting can decide either way: where all candidates are at least THRESHOLDS' last, or all are below
its first, so is every mean of them, and a count is enough. So the Dice of a weighting is exact, apart from rounding
to 1/255, until a photo has more undecided pixels than memory allows; then it rests on a stratified sample of them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from carvana.errors import InputError
from carvana.tta import Mean, mean_of_views

THRESHOLDS = tuple(level / 100 for level in range(30, 71))
CONTESTED = 4  # pixels on both sides of one half for different candidates are drawn so many times as often as others
STRATA = 32
TIE = 1e-6  # a mean of equal values may be below them by the rounding of float32
PHOTOS_AT_ONCE = 64


class PixelSample:
    """Undecided pixels of up to `photos` photos, of `experiments` x `views` candidates, in at most `memory` bytes.

    Raises InputError if that is too little.
    """

    def __init__(self, photos: int, experiments: int, views: int, memory: int):
        candidates = experiments * views
        self.shape, self.bound = (experiments, views), memory // (photos * (candidates + 5))
        if self.bound < 2 * STRATA:
            least = -(-2 * STRATA * photos * (candidates + 5) // 2**20)
            raise InputError(f"--memory: {photos} photos of {candidates} candidates need at least {least} MiB")
        self._values = torch.empty((experiments, views, photos * self.bound), dtype=torch.uint8)
        self._truth = torch.empty(photos * self.bound, dtype=torch.bool)
        self._share = torch.empty(photos * self.bound)  # how many pixels each one stands for
        self._ends, self._sure, self._car = [0], [], []
        self.sampled = 0  # photos of which not all undecided pixels are kept

    def add(self, maps: torch.Tensor, mask: torch.Tensor) -> None:
        """maps: uint8 (experiments * views, H, W), 255 times the probability; mask: bool (H, W)."""
        maps, mask = maps.flatten(1), mask.flatten()
        low, high = maps.amin(0), maps.amax(0)
        car, other = low >= 255 * THRESHOLDS[-1], high < 255 * THRESHOLDS[0]
        self._sure.append([(car & ~mask).sum().item(), (car & mask).sum().item()])
        self._car.append(mask.sum().item())
        index = (~(car | other)).nonzero()[:, 0]
        share = torch.ones(len(index))
        if len(index) > self.bound:
            contested = (low < 128) & (high >= 128)
            level = maps[:, index].float().mean(0).to(torch.uint8) >> 5
            strata = level + 8 * mask[index].to(torch.uint8) + 16 * contested[index].to(torch.uint8)
            chosen, share = draw(strata.cpu().numpy(), self.bound, seed=len(self._car))
            index, self.sampled = index[torch.from_numpy(chosen).to(index.device)], self.sampled + 1
        start, end = self._ends[-1], self._ends[-1] + len(index)
        self._values[..., start:end] = maps[:, index].view(*self.shape, -1)
        self._truth[start:end] = mask[index]
        self._share[start:end] = torch.as_tensor(share)
        self._ends.append(end)

    def curves(self, weights: Sequence[float], views: Sequence[int], mean: Mean = "probs") -> np.ndarray:
        """Dice of each photo at each of THRESHOLDS, (photos, 41), of experiments so weighted, through these views."""
        parts = [self._curves(part, torch.tensor(weights), list(views), mean) for part in self._parts()]
        return torch.cat(parts).numpy()

    def _parts(self) -> Iterator[range]:
        for first in range(0, len(self._car), PHOTOS_AT_ONCE):
            yield range(first, min(first + PHOTOS_AT_ONCE, len(self._car)))

    def _curves(self, photos: range, weights: torch.Tensor, views: list[int], mean: Mean) -> torch.Tensor:
        ends = self._ends[photos[0] : photos[-1] + 2]
        kept = slice(ends[0], ends[-1])
        probs = torch.zeros(kept.stop - kept.start)
        for experiment in weights.nonzero()[:, 0].tolist():
            values = torch.stack([self._values[experiment, view, kept] for view in views]).float() / 255
            probs.add_(mean_of_views(values, mean), alpha=weights[experiment].item())
        width = len(THRESHOLDS) + 1  # level k: at least the first k thresholds
        levels = probs.add_(TIE - THRESHOLDS[0]).mul_(100).floor_().add_(1).clamp_(0, width - 1).long()
        photo = torch.repeat_interleave(torch.arange(len(photos)), torch.tensor(ends).diff())
        cells = (photo * 2 + self._truth[kept]) * width + levels
        counts = torch.bincount(cells, self._share[kept].double(), minlength=len(photos) * 2 * width)
        above = counts.view(-1, 2, width).flip(2).cumsum(2).flip(2)[:, :, 1:]
        above = above + torch.tensor(self._sure[photos[0] : photos[-1] + 1])[:, :, None]
        total = above.sum(1) + torch.tensor(self._car[photos[0] : photos[-1] + 1])[:, None]
        return torch.where(total > 0, 2 * above[:, 1] / total.clamp(min=1), 1.0)


def draw(strata: np.ndarray, bound: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `bound` positions of `strata` (0 to 31), some of each stratum, and how many each stands for.

    Strata from 16 on are contested, and drawn CONTESTED times as often.
    """
    sizes = np.bincount(strata, minlength=STRATA)
    wanted = sizes * np.where(np.arange(STRATA) < STRATA // 2, 1, CONTESTED)
    quota = np.minimum(sizes, np.maximum(1, (bound - STRATA) * wanted // wanted.sum()))
    keys = np.random.default_rng(seed).random(len(strata))
    order = np.lexsort((keys, strata))
    rank = np.empty(len(strata), np.int64)
    rank[order] = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.flatnonzero(rank < quota[strata])
    return chosen, (sizes / np.maximum(quota, 1))[strata[chosen]]


def quantise(probs: torch.Tensor) -> torch.Tensor:
    """Probabilities to uint8, rounded: at least one half stays at least one half of 255."""
    return (probs * 255).round().to(torch.uint8)
