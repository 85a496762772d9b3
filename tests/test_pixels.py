import numpy as np
import pytest
import torch

from carvana.errors import InputError
from carvana.metrics import dice
from carvana.pixels import THRESHOLDS, PixelSample, draw, quantise

EXPERIMENTS, VIEWS, PHOTOS = 2, 3, 4
WEIGHTINGS = [([1, 0], [0]), ([0.5, 0.5], [0, 2]), ([0.15, 0.85], [0, 1, 2])]


def photo(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (6, 60, 80) around one true outline, each wrong in its own way, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.linspace(-8, 8, 80).expand(60, 80)
    noise = torch.randn(EXPERIMENTS * VIEWS, 60, 80, generator=generator)
    return (slope + 1.5 * noise).sigmoid(), slope + 0.5 * torch.randn(60, 80, generator=generator) > 0


def fill(memory: int) -> PixelSample:
    sample = PixelSample(PHOTOS, EXPERIMENTS, VIEWS, memory)
    for seed in range(PHOTOS):
        maps, mask = photo(seed)
        sample.add(quantise(maps), mask)
    return sample


def whole(weights, views, mean) -> np.ndarray:
    """The same from whole maps, without rounding."""
    curves = []
    for seed in range(PHOTOS):
        maps, mask = photo(seed)
        chosen = maps.view(EXPERIMENTS, VIEWS, 60, 80)[:, views]
        mixed = chosen.mean(1) if mean == "probs" else chosen.logit().mean(1).sigmoid()
        probs = (mixed * torch.tensor(weights)[:, None, None]).sum(0)
        curves.append([dice(probs >= threshold, mask) for threshold in THRESHOLDS])
    return np.array(curves)


@pytest.mark.parametrize("mean", ["probs", "logits"])
@pytest.mark.parametrize(("weights", "views"), WEIGHTINGS)
def test_dice_of_any_weighting_is_that_of_whole_maps(weights, views, mean):
    sample = fill(memory=10**6)
    assert sample.sampled == 0
    assert sample._ends[-1] < 0.8 * PHOTOS * 4800  # the others are only counted
    error = sample.curves(weights, views, mean) - whole(weights, views, mean)
    assert abs(error).max() < 4e-3  # of 4800 pixels, a few lie within 1/510 of a threshold
    assert abs(error.mean()) < 3e-4


def test_one_map_at_one_half_is_exact():
    half = THRESHOLDS.index(0.5)
    assert fill(10**6).curves([1, 0], [0])[:, half] == pytest.approx(whole([1, 0], [0], "probs")[:, half], abs=1e-12)


def test_a_bounded_sample_is_near():
    sample = fill(memory=PHOTOS * 11 * 600)
    assert sample.sampled == PHOTOS
    assert sample._ends[-1] <= PHOTOS * 600
    for weights, views in WEIGHTINGS:
        error = sample.curves(weights, views) - whole(weights, views, "probs")
        assert abs(error.mean(0)).max() < 5e-3
    assert np.array_equal(sample.curves([0.5, 0.5], [0, 1]), fill(PHOTOS * 11 * 600).curves([0.5, 0.5], [0, 1]))


def test_sampled_pixels_stand_for_all():
    strata = np.random.default_rng(0).choice(32, 10_000, p=np.arange(1, 33) / 528)
    chosen, share = draw(strata, 500, seed=3)
    assert len(chosen) <= 500
    assert np.allclose(np.bincount(strata[chosen], share, minlength=32), np.bincount(strata, minlength=32))


def test_empty_photos_count_as_agreement():
    sample = PixelSample(1, 1, 1, 10**4)
    sample.add(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.bool))
    assert (sample.curves([1.0], [0]) == 1).all()


def test_too_little_memory_is_refused():
    with pytest.raises(InputError, match="--memory: 100 photos of 6 candidates need at least 1 MiB"):
        PixelSample(100, 2, 3, 1000)
