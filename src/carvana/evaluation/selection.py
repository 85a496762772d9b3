"""Chooses experiments' weights, views, threshold and post-processing by out-of-fold Dice, in two passes over photos.

The first pass keeps a sample of undecided pixels, on which the search runs (`pixels.Search`). The second predicts
whole maps of the simplest choice and of the best one, so that the reported figures are exact, and tries
post-processing, which needs whole masks. Search and score use the same cars: with a few numbers searched and hundreds
of cars the bias is small, and a gain whose interval includes 0 is refused.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from carvana.data.folds import folds_digest
from carvana.errors import InputError
from carvana.evaluation.metrics import bootstrap_interval, dice
from carvana.evaluation.oof import Unseen
from carvana.evaluation.pixels import PixelSample, Search, quantise
from carvana.log import say
from carvana.models.checkpoint import Checkpoint
from carvana.prediction.ensemble import Choice
from carvana.prediction.postprocess import PostProcess
from carvana.prediction.predictor import Mix, fold_members
from carvana.provenance import git_commit, versions


def sample_pixels(unseen: Unseen, experiments: Sequence[str], views: Sequence[str], memory: int) -> PixelSample:
    """The first pass: of each photo the pixels on which the experiments and their views do not agree."""

    def mixes(networks: dict[str, Checkpoint]) -> list[Mix]:
        members = [fold_members([networks[name]], views, unseen.device)[0] for name in experiments]
        return [[member._replace(network=member.network.each)] for member in members]

    sample = PixelSample(len(unseen.cars), len(experiments), len(views), memory)
    for prediction in unseen.predict(mixes, "sample"):
        sample.add(torch.cat([quantise(maps) for maps in prediction.maps]), prediction.mask)
    return sample


def predict_choices(unseen: Unseen, choices: Sequence[Choice], repairs: Sequence[PostProcess]) -> np.ndarray:
    """The second pass: Dice from whole maps, (choices, repairs, photos), of each choice's mask after each repair."""

    def mixes(networks: dict[str, Checkpoint]) -> list[Mix]:
        return [
            [
                fold_members([networks[name]], choice.views, unseen.device, weight)[0]
                for name, weight in choice.experiments.items()
            ]
            for choice in choices
        ]

    dices = []
    for prediction in unseen.predict(mixes, "confirm"):
        truth = prediction.mask.cpu()
        cuts = [(m[0] >= c.threshold).cpu().numpy() for m, c in zip(prediction.maps, choices, strict=True)]
        dices.append([[dice(torch.from_numpy(repair(cut)), truth) for repair in repairs] for cut in cuts])
    return np.moveaxis(np.array(dices), 0, -1)


class Scored(NamedTuple):
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

    @classmethod
    def of(cls, choice: Choice, dices: np.ndarray, simplest: np.ndarray, cars: Sequence[str]) -> "Scored":
        """dices, simplest: of each photo, (photos,), by this choice and by the one that it is to gain over."""
        gains = dices - simplest
        return cls(
            choice, float(dices.mean()), bootstrap_interval(dices, cars),
            float(gains.mean()), bootstrap_interval(gains, cars),
        )  # fmt: skip


class Selection(NamedTuple):
    """The choice to use, and those it was compared with."""

    winner: Scored
    ladder: list[Scored]  # on the sample of pixels
    rows: list[Scored]  # on whole masks, the simplest first

    def facts(self, unseen: Unseen) -> dict:
        """What ensemble.json holds beside the choice: its scores, the simplest choice's, and where they come from."""
        simplest = self.rows[0]
        return {
            **{key: value for key, value in self.winner._asdict().items() if key != "choice"},
            "simplest": simplest.choice.model_dump(mode="json") | {"dice": simplest.dice},
            "photos": len(unseen.cars), "cars": len(set(unseen.cars)), "folds_digest": folds_digest(unseen.folds),
            "commit": git_commit(), "versions": versions(),
        }  # fmt: skip


def select_ensemble(
    unseen: Unseen, experiments: list[str], views: list[str], below: tuple[int, int], memory: int
) -> Selection:
    """Both passes. below: holes to be filled and parts to be dropped have fewer pixels; memory: bytes."""
    cars = unseen.cars
    if len(set(cars)) < 2:
        raise InputError("one car cannot show which choice is better; give photos of more cars of the trained folds")
    sample = sample_pixels(unseen, experiments, views, memory)
    if sample.sampled:
        say(f"note: of {sample.sampled} photos only a part of the undecided pixels fits; --memory may be raised")
    search = Search(sample, experiments, views)
    simplest, ladder = search.simplest(), search.ladder()
    by_simplest = search.dices(simplest)
    compared = [Scored.of(choice, search.dices(choice), by_simplest, cars) for choice in ladder]
    holes, parts = below
    repairs = list(dict.fromkeys(PostProcess(a, b) for a in (0, holes) for b in (0, parts)))
    choices = [simplest] if ladder[-1] == simplest else [simplest, ladder[-1]]
    winner, rows = decide(choices, repairs, predict_choices(unseen, choices, repairs), cars)
    return Selection(winner, compared, rows)


def decide(
    choices: Sequence[Choice], repairs: Sequence[PostProcess], dices: np.ndarray, cars: Sequence[str]
) -> tuple[Scored, list[Scored]]:
    """The choice to use, and all that were compared: the simplest with each repair, then the best of the search.

    choices: the simplest and the best of the search; repairs: the first is none; dices: of `predict_choices`. The
    searched choice is taken only if it gains over the simplest, both without repair. Then a repair is taken only if it
    gains over the same masks without it. Both gains must lie outside the noise.
    """
    scored = [
        [
            Scored.of(choice.model_copy(update={"postprocess": repair}), repaired, dices[0, 0], cars)
            for repair, repaired in zip(repairs, of_choice, strict=True)
        ]
        for choice, of_choice in zip(choices, dices, strict=True)
    ]
    index = len(choices) - 1 if scored[-1][0].is_real else 0
    unrepaired, *repaired = scored[index]
    gaining = [
        row for row, values in zip(repaired, dices[index, 1:], strict=True)
        if Scored.of(row.choice, values, dices[index, 0], cars).is_real
    ]  # fmt: skip
    return max([unrepaired, *gaining], key=lambda row: row.dice), [*chain.from_iterable(scored)]


def row_lines(rows: list[Scored]) -> list[str]:
    """A heading and a line a choice; the same choice once."""
    lines = {None: f"  {'Dice':7}  {'95 % interval':16}  {'gain':8}  {'95 % interval':18}  choice"}
    for row in rows:
        (low, high), (least, most) = row.interval, row.gain_interval
        line = f"  {row.dice:.5f}  {low:.5f}-{high:.5f}  {row.gain:+.5f}  {least:+.5f} {most:+.5f}  {row.choice}"
        lines.setdefault(str(row.choice), line)
    return list(lines.values())
