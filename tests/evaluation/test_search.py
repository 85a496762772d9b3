"""The Dice of any weighting on a sample of pixels is that of whole maps; choices are what noise asks for."""

import numpy as np
import pytest
import torch

from carvana.errors import InputError
from carvana.evaluation.metrics import dice
from carvana.evaluation.pixels import LEVELS, PixelSample, Search, quantise
from carvana.evaluation.selection import decide
from carvana.prediction.ensemble import Choice
from carvana.prediction.postprocess import AS_IT_IS, PostProcess

NOISES = [[1.5] * 3] * 2  # of two experiments in three views


def photo(seed: int, noises: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (experiments, views, 60, 80) whose logits have so much noise around a true outline, and the truth."""
    random, slope = torch.Generator().manual_seed(seed), torch.linspace(-8, 8, 80).expand(60, 80)
    noise = torch.randn(len(noises), len(noises[0]), 60, 80, generator=random) * torch.tensor(noises)[..., None, None]
    return (slope + noise).sigmoid(), slope + 0.5 * torch.randn(60, 80, generator=random) > 0


def fill(noises: list[list[float]], photos: int, memory: int = 10**7) -> PixelSample:
    sample = PixelSample(photos, len(noises), len(noises[0]), memory)
    for seed in range(photos):
        maps, mask = photo(seed, noises)
        sample.add(quantise(maps.flatten(0, 1)), mask)
    return sample


@pytest.mark.parametrize(("weights", "views"), [([1, 0], [0]), ([0.5, 0.5], [0, 2]), ([0.15, 0.85], [0, 1, 2])])
def test_dice_of_any_weighting_is_that_of_whole_maps(weights, views):
    whole = []
    for maps, mask in (photo(seed, NOISES) for seed in range(4)):
        probs = (maps[:, views].mean(1) * torch.tensor(weights)[:, None, None]).sum(0)
        whole.append([dice(probs >= threshold, mask) for threshold in LEVELS])
    sample, (bounded, again) = fill(NOISES, 4), (fill(NOISES, 4, memory=4 * 11 * 600) for _ in range(2))
    assert sample._ends[-1] < 0.8 * 4 * 4800  # the others are only counted
    error = sample.curves(weights, views) - whole
    assert abs(error).max() < 4e-3  # of 4800 pixels, a few lie within 1/510 of a threshold
    assert abs(error.mean()) < 3e-4
    assert len(views) > 1 or abs(error[:, LEVELS.index(0.5)]).max() < 1e-12  # one map at one half is exact
    assert (sample.sampled, bounded.sampled, bounded._ends[-1] <= 4 * 600) == (0, 4, True)
    assert abs((bounded.curves(weights, views) - whole).mean(0)).max() < 1e-2  # the draw is the same for all weightings
    assert np.array_equal(bounded.curves(weights, views), again.curves(weights, views))


def test_empty_photos_count_as_agreement_and_too_little_memory_is_refused():
    sample = PixelSample(1, 1, 1, 10**4)
    sample.add(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.bool))
    assert (sample.curves([1.0], [0]) == 1).all()
    with pytest.raises(InputError, match="--memory: 100 photos of 6 candidates need at least 1 MiB"):
        PixelSample(100, 2, 3, 1000)


def test_search_takes_the_weights_that_noise_asks_for_and_views_that_help():
    search = Search(fill([[2.0], [2.0], [9.0]], 12), ["a", "b", "noise"], ["identity"])
    ladder = search.ladder()
    simplest, best = search.simplest(), ladder[-1]
    assert abs(best.experiments["a"] - best.experiments["b"]) < 0.2 > best.experiments.get("noise", 0)
    assert sum(best.experiments.values()) == pytest.approx(1, abs=1e-5)
    assert simplest in ladder[:2]
    assert search.dices(best).mean() > search.dices(simplest).mean() + 0.005
    assert [list(choice.experiments) for choice in ladder[:3]] == [["a"], ["b"], ["noise"]]
    assert set(ladder[5].experiments.values()) == {1 / 3}
    search = Search(fill([[2.0, 2.0, 30.0]], 12), ["a"], ["identity", "hflip", "scale2"])
    assert (search.ladder()[-1].views, search.simplest().views) == (("identity", "hflip"), ("identity",))


SIMPLE, BEST = Choice(experiments={"a": 1.0}), Choice(experiments={"a": 0.5, "b": 0.5}, threshold=0.45)
REPAIR = PostProcess(holes=9)
SIMPLE_MENDED, BEST_MENDED = (choice.model_copy(update={"postprocess": REPAIR}) for choice in (SIMPLE, BEST))


@pytest.mark.parametrize(("gain", "by_repair", "expected"), [
    ([0.01] * 8, 0.0, BEST), ([0.01] * 8, 0.002, BEST_MENDED), ([0.01] * 8, -0.002, BEST),
    ([-0.01] * 8, -0.001, SIMPLE), ([-0.01] * 8, 0.001, SIMPLE_MENDED),
    ([0.03, -0.02, 0.03, -0.02, 0.03, -0.02, -0.02, 0.0], 0.0, SIMPLE),
    ([0.003, -0.002] * 4, 0.01, SIMPLE_MENDED),  # the search gains nothing of its own: only with the repair
])  # fmt: skip
def test_a_gain_inside_the_noise_is_refused(gain, by_repair, expected):
    cars, simple = np.repeat(list("abcdefgh"), 4), np.random.default_rng(0).normal(0.95, 0.01, 32)
    best = simple + np.repeat(gain, 4)
    dices = np.array([[simple, simple + by_repair], [best, best + by_repair]])
    winner, rows = decide([SIMPLE, BEST], [AS_IT_IS, REPAIR], dices, cars)
    assert winner.choice == expected
    assert [row.gain for row in rows] == pytest.approx([0, by_repair, np.mean(gain), np.mean(gain) + by_repair])
    assert rows[2].gain_interval[0] <= rows[2].gain <= rows[2].gain_interval[1]
