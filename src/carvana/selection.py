"""Chooses experiments' weights, views, threshold and post-processing by out-of-fold Dice, in two passes over photos.

The first pass keeps a sample of undecided pixels (`pixels`), on which the search runs. The second predicts whole maps
of the simplest choice and of the one found, so that what is reported is exact, and tries post-processing, which needs
whole masks. What was searched on these cars is also scored on them: with a few numbers searched and hundreds of cars
the bias is small, and a gain whose interval includes 0 is refused.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch

from carvana.checkpoint import Checkpoint
from carvana.choice import Choice
from carvana.metrics import bootstrap_interval, dice
from carvana.oof import FLAT, best_threshold
from carvana.pixels import THRESHOLDS, PixelSample, quantise
from carvana.postprocess import PostProcess
from carvana.tta import TTA, Mean
from carvana.unseen import Source, Unseen

STEPS = (0.2, 0.1, 0.05)  # of the search for weights


def sample_pixels(
    unseen: Unseen, experiments: Sequence[str], views: Sequence[str], memory: int, together: bool = False
) -> PixelSample:
    """The first pass: of each photo the pixels that the experiments, seen through the views, do not agree upon."""

    def sources(networks: dict[str, Checkpoint]) -> list[Source]:
        looks = [(networks[name], TTA(networks[name].model, views, together=together)) for name in experiments]
        return [(network.config.data.geometry, tta.each) for network, tta in looks]

    sample = PixelSample(len(unseen.cars), len(experiments), len(views), memory)
    for maps, mask in unseen.predict(sources, "sample"):
        sample.add(torch.cat([quantise(some) for some in maps]), mask)
    return sample


class Search:
    """Choices and their Dice on a sample of pixels. All is deterministic."""

    def __init__(self, sample: PixelSample, experiments: Sequence[str], views: Sequence[str], mean: Mean = "probs"):
        self.sample, self.experiments, self.views, self.mean = sample, list(experiments), list(views), mean
        self._known = {}

    def dices(self, choice: Choice) -> np.ndarray:
        """Of each photo."""
        return self._curves(*self._indices(choice))[:, THRESHOLDS.index(choice.threshold)]

    def simplest(self) -> Choice:
        """The best experiment alone, the photo as it is, cut at one half."""
        alone = [Choice(experiments={name: 1.0}) for name in self.experiments]
        return max(alone, key=lambda choice: self.dices(choice).mean())

    def ladder(self) -> list[Choice]:
        """From each experiment alone to the best weights, views and threshold found, the last one."""
        equal = [1 / len(self.experiments)] * len(self.experiments)
        best = self._indices(self.simplest())[0]
        weights, views = equal, [0]
        for _ in range(2):  # the views suit the weights that were found, and these the views
            views = self._best_views(weights)
            weights = self._best_weights(views)
        alone = [Choice(experiments={name: 1.0}) for name in self.experiments]
        steps = [(best, [0]), (best, self._best_views(best)), (equal, [0]), (equal, views), (weights, views)]
        return alone + [self._choice(*step) for step in steps]

    def _best_views(self, weights: list[float]) -> list[int]:
        """The photo itself, and one view after another as long as the best of those left gains FLAT."""
        chosen = [0]
        while rest := [view for view in range(len(self.views)) if view not in chosen]:
            best = max(rest, key=lambda view: self._peak(weights, [*chosen, view]))
            if self._peak(weights, [*chosen, best]) <= self._peak(weights, chosen) + FLAT:
                break
            chosen.append(best)
        return chosen

    def _best_weights(self, views: list[int]) -> list[float]:
        """Coordinate search on the simplex: from the best of equal weights and each experiment alone, moves a STEP of
        weight from one experiment to another as long as that gains a tenth of FLAT."""
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
            self._known[key] = self._curves(weights, views).mean(0).max()
        return self._known[key]

    def _curves(self, weights: list[float], views: list[int]) -> np.ndarray:
        return self.sample.curves(weights, views, self.mean)

    def _choice(self, weights: list[float], views: list[int]) -> Choice:
        named = {name: weight for name, weight in zip(self.experiments, weights, strict=True) if weight > 0}
        threshold = best_threshold(self._curves(weights, views).mean(0), THRESHOLDS)
        mean = self.mean if len(views) > 1 else "probs"
        return Choice(experiments=named, views=[self.views[view] for view in views], mean=mean, threshold=threshold)

    def _indices(self, choice: Choice) -> tuple[list[float], list[int]]:
        weights = [choice.experiments.get(name, 0.0) for name in self.experiments]
        return weights, [self.views.index(view) for view in choice.views]


def predict_choices(
    unseen: Unseen, choices: Sequence[Choice], repairs: Sequence[PostProcess], together: bool = False
) -> np.ndarray:
    """The second pass: Dice from whole maps, (choices, repairs, photos), of each choice's mask after each repair."""

    def sources(networks: dict[str, Checkpoint]) -> list[Source]:
        return [
            (networks[name].config.data.geometry, TTA(networks[name].model, choice.views, choice.mean, together))
            for choice in choices
            for name in choice.experiments
        ]

    dices = []
    for maps, mask in unseen.predict(sources, "confirm"):
        rest = iter(maps)
        cuts = [_cut(choice, rest) for choice in choices]
        dices.append([[dice(_mend(cut, repair), mask) for repair in repairs] for cut in cuts])
    return np.moveaxis(np.array(dices), 0, -1)


def _cut(choice: Choice, maps: Iterator[torch.Tensor]) -> torch.Tensor:
    """Where the weighted mean of the next maps (1, H, W), one an experiment, reaches the threshold: (H, W)."""
    total = sum(choice.experiments.values())
    return sum(weight / total * next(maps)[0] for weight in choice.experiments.values()) >= choice.threshold


def _mend(mask: torch.Tensor, repair: PostProcess) -> torch.Tensor:
    return mask if repair == PostProcess() else torch.from_numpy(repair(mask.cpu().numpy())).to(mask.device)


class Row(NamedTuple):
    """A choice, its Dice, and its gain over the simplest choice, each with its 95 % interval over cars."""

    choice: Choice
    dice: float
    interval: list[float]
    gain: float
    gain_interval: list[float]

    @property
    def is_real(self) -> bool:
        """Whether the gain lies outside the noise."""
        return self.gain_interval[0] > 0


def compare(choice: Choice, dices: np.ndarray, simplest: np.ndarray, cars: Sequence[str]) -> Row:
    """The row of a choice from the Dice of each photo, (photos,), its own and the simplest choice's."""
    gains = dices - simplest
    return Row(
        choice, float(dices.mean()), bootstrap_interval(dices, cars),
        float(gains.mean()), bootstrap_interval(gains, cars),
    )  # fmt: skip


def decide(
    choices: Sequence[Choice], repairs: Sequence[PostProcess], dices: np.ndarray, cars: Sequence[str]
) -> tuple[Row, list[Row]]:
    """What to use, and the rows that led to it: first the simplest choice, then the one found, then it with repairs.

    choices: the simplest and the one found; repairs: the first is none; dices: of `predict_choices`. A repair is
    taken only if it gains over the same masks without it, and what was found only if it gains over the simplest,
    outside the noise.
    """
    rows = [compare(choices[0], dices[0, 0], dices[0, 0], cars)]
    best = 0
    for index, repair in enumerate(repairs):
        choice = choices[-1].model_copy(update={"postprocess": repair})
        rows.append(compare(choice, dices[-1, index], dices[0, 0], cars))
        helps = index > 0 and compare(choice, dices[-1, index], dices[-1, 0], cars).is_real
        if helps and rows[1 + index].dice > rows[1 + best].dice:
            best = index
    found = rows[1 + best]
    return (found if found.is_real else rows[0]), rows
