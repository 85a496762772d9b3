"""A sample of undecided pixels, from which the Dice of any weighting of the candidates follows, and the search on it.

A candidate is an experiment seen through one view. Of its map at photo size, 8 bits a pixel are kept, and only of
pixels that some weighting can decide either way: where all candidates are at least LEVELS' last, or all are below
its first, so is every mean of them, and a count is enough. So the Dice of a weighting is exact, apart from rounding
to 1/255, until a photo has more undecided pixels than memory allows; then it rests on a random sample of them.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch

from carvana.errors import InputError
from carvana.evaluation.summary import FLAT, best_threshold
from carvana.prediction.ensemble import Choice, weighted_mean

LEVELS = tuple(level / 100 for level in range(30, 71))
FEWEST = 64  # pixels of a photo
TIE = 1e-6  # a mean of equal values may be below them by the rounding of float32
PHOTOS_AT_ONCE = 64
STEPS = (0.2, 0.1, 0.05)  # of the search for weights


class PixelSample:
    """Undecided pixels of up to `photos` photos, of `experiments` x `views` candidates, in at most `memory` bytes.

    Raises InputError if that is too little.
    """

    def __init__(self, photos: int, experiments: int, views: int, memory: int):
        candidates = experiments * views
        self.shape, self.bound = (experiments, views), memory // (photos * (candidates + 5))
        if self.bound < FEWEST:
            least = -(-FEWEST * photos * (candidates + 5) // 2**20)
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
        car, other = low >= 255 * LEVELS[-1], high < 255 * LEVELS[0]
        self._sure.append([(car & ~mask).sum().item(), (car & mask).sum().item()])
        self._car.append(mask.sum().item())
        index = (~(car | other)).nonzero()[:, 0]
        share = max(1.0, len(index) / self.bound)
        if share > 1:
            drawn = np.random.default_rng(len(self._car)).choice(len(index), self.bound, replace=False)
            index, self.sampled = index[torch.from_numpy(np.sort(drawn)).to(index.device)], self.sampled + 1
        start, end = self._ends[-1], self._ends[-1] + len(index)
        self._values[..., start:end] = maps[:, index].view(*self.shape, -1)
        self._truth[start:end] = mask[index]
        self._share[start:end] = share
        self._ends.append(end)

    def curves(self, weights: Sequence[float], views: Sequence[int]) -> np.ndarray:
        """Dice of each photo at each of LEVELS, (photos, 41), of experiments so weighted, through these views."""
        photos = range(len(self._car))
        parts = [photos[first : first + PHOTOS_AT_ONCE] for first in photos[::PHOTOS_AT_ONCE]]
        return torch.cat([self._curves(part, torch.tensor(weights), list(views)) for part in parts]).numpy()

    def _curves(self, photos: range, weights: torch.Tensor, views: list[int]) -> torch.Tensor:
        ends = self._ends[photos[0] : photos[-1] + 2]
        kept = slice(ends[0], ends[-1])
        weighted = weights.nonzero()[:, 0].tolist()
        maps = (self._values[experiment, views, kept].float().mean(0) / 255 for experiment in weighted)
        probs = weighted_mean(maps, weights[weighted].tolist())
        width = len(LEVELS) + 1  # level k: at least the first k thresholds
        levels = probs.add(TIE - LEVELS[0]).mul_(100).floor_().add_(1).clamp_(0, width - 1).long()
        photo = torch.repeat_interleave(torch.arange(len(photos)), torch.tensor(ends).diff())
        cells = (photo * 2 + self._truth[kept]) * width + levels
        counts = torch.bincount(cells, self._share[kept].double(), minlength=len(photos) * 2 * width)
        above = counts.view(-1, 2, width).flip(2).cumsum(2).flip(2)[:, :, 1:]
        above = above + torch.tensor(self._sure[photos[0] : photos[-1] + 1])[:, :, None]
        total = above.sum(1) + torch.tensor(self._car[photos[0] : photos[-1] + 1])[:, None]
        return torch.where(total > 0, 2 * above[:, 1] / total.clamp(min=1), 1.0)


def quantise(probs: torch.Tensor) -> torch.Tensor:
    """Probabilities to uint8, rounded: at least one half stays at least one half of 255."""
    return (probs * 255).round().to(torch.uint8)


class Search:
    """Choices and their Dice on a sample of pixels. All is deterministic."""

    def __init__(self, sample: PixelSample, experiments: Sequence[str], views: Sequence[str]):
        self.sample, self.experiments, self.views = sample, list(experiments), list(views)
        self._known = {}

    def dices(self, choice: Choice) -> np.ndarray:
        """Of each photo: (photos,)."""
        return self.sample.curves(*self._indices(choice))[:, LEVELS.index(choice.threshold)]

    def alone(self) -> list[Choice]:
        """Each experiment, the photo as it is, cut at one half."""
        return [Choice(experiments={name: 1.0}) for name in self.experiments]

    def simplest(self) -> Choice:
        """The best of `alone`."""
        return max(self.alone(), key=lambda choice: self.dices(choice).mean())

    def ladder(self) -> list[Choice]:
        """From each experiment alone to the best of all: with its threshold, views, equal weights, searched weights."""
        equal = [1 / len(self.experiments)] * len(self.experiments)
        best = self._indices(self.simplest())[0]
        weights, views = equal, [0]
        for _ in range(2):  # views are searched for given weights, and weights for given views
            views = self._best_views(weights)
            weights = self._best_weights(views)
        steps = [(best, [0]), (best, self._best_views(best)), (equal, [0]), (equal, views), (weights, views)]
        return self.alone() + [self._choice(*step) for step in steps]

    def _best_views(self, weights: list[float]) -> list[int]:
        """The photo itself, and the best of the other views, one by one, as long as that gains FLAT."""
        views = [0]
        while others := [view for view in range(len(self.views)) if view not in views]:
            best = max(others, key=lambda view: self._peak(weights, [*views, view]))
            if self._peak(weights, [*views, best]) <= self._peak(weights, views) + FLAT:
                break
            views.append(best)
        return views

    def _best_weights(self, views: list[int]) -> list[float]:
        """Coordinate search on the simplex, from the best of equal weights and each experiment alone.

        One of STEPS is moved from an experiment to another as long as that gains a tenth of FLAT.
        """
        count = len(self.experiments)
        starts = [[1 / count] * count, *np.eye(count).tolist()]
        weights = max(starts, key=lambda start: self._peak(start, views))
        best = self._peak(weights, views)
        for step in STEPS:
            moved = True
            while moved:
                moved = False
                for giver, taker in permutations(range(count), 2):
                    trial, amount = list(weights), min(step, weights[giver])
                    trial[giver], trial[taker] = round(trial[giver] - amount, 12), round(trial[taker] + amount, 12)
                    if amount > 0 and (peak := self._peak(trial, views)) > best + FLAT / 10:
                        weights, best, moved = trial, peak, True
        return weights

    def _peak(self, weights: list[float], views: list[int]) -> float:
        """Mean Dice at the best threshold."""
        key = tuple(weights), tuple(views)
        if key not in self._known:
            self._known[key] = self.sample.curves(weights, views).mean(0).max()
        return self._known[key]

    def _choice(self, weights: list[float], views: list[int]) -> Choice:
        named = {name: weight for name, weight in zip(self.experiments, weights, strict=True) if weight > 0}
        threshold = best_threshold(self.sample.curves(weights, views).mean(0), LEVELS)
        return Choice(experiments=named, views=[self.views[view] for view in views], threshold=threshold)

    def _indices(self, choice: Choice) -> tuple[list[float], list[int]]:
        weights = [choice.experiments.get(name, 0.0) for name in self.experiments]
        return weights, [self.views.index(view) for view in choice.views]
