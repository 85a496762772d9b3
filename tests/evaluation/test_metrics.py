"""Dice of an image, its interval over cars, and whether one experiment's is better than another's."""

import numpy as np
import pandas as pd
import pytest
import torch

from carvana.errors import InputError
from carvana.evaluation.comparison import compare, comparison_lines
from carvana.evaluation.metrics import BEYOND, THRESHOLDS, bootstrap_interval, dice, dice_curve, errors_beyond

EMPTY, MASK = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[False, True, True]])
SHIFTED = torch.tensor([[True, True, False]])  # an overlap of one third
DICE, LUCKY = np.linspace(0.97, 0.99, 12), np.where(np.arange(12) == 3, 0.01, -1e-4)
UNCLEAR, GAINS = "no difference that these cars can show", np.array([0.01, -0.002, 0.004, 0, 0.02, 0.03, 0.04])


@pytest.mark.parametrize(("prediction", "mask", "expected"), [
    (SHIFTED, MASK, 0.5), (MASK, MASK, 1), (~MASK, MASK, 0), (EMPTY, EMPTY, 1), (~EMPTY, EMPTY, 0),
])  # fmt: skip
def test_dice(prediction, mask, expected):
    assert dice(prediction, mask) == expected
    assert dice_curve(prediction.float(), mask).tolist() == [expected] * 99


def test_curve_is_dice_at_every_threshold():
    torch.manual_seed(0)
    probs, mask = torch.rand(37, 53), torch.rand(37, 53) < 0.4
    expected = [dice(probs >= threshold, mask) for threshold in THRESHOLDS]
    assert dice_curve(probs, mask).tolist() == pytest.approx(expected, abs=2e-3)  # a pixel exactly at a level


def test_errors_are_counted_beyond_one_and_five_pixels_of_the_true_contour():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    grown = lambda pixels: mask | np.roll(mask, pixels, axis=1)
    for pixels, columns in ((1, (0, 0)), (3, (2, 0)), (7, (6, 2))):  # wrong columns beyond the first and the fifth
        prediction, total = grown(pixels), 800 + 800 + 20 * pixels
        assert list(errors_beyond(prediction, mask).values()) == [20 * wrong / total for wrong in columns]
    assert errors_beyond(~mask & mask, ~mask & mask) == dict.fromkeys(BEYOND, 0)


def test_bootstrap_draws_cars_and_not_photos():
    per_car = np.random.default_rng(1).normal(0.99, 0.01, 50)
    low, high = bootstrap_interval(np.repeat(per_car, 16), np.repeat(np.arange(50), 16))
    assert low < per_car.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * per_car.std() / 50**0.5, rel=0.1)  # not 16 times the sample


def table(dice: np.ndarray) -> pd.DataFrame:
    """Photos of len(dice) cars, two each."""
    names = [(f"car{number:02d}_0{angle}", f"car{number:02d}") for number in range(len(dice)) for angle in (1, 2)]
    beyond = {name: np.repeat((1 - dice) / 2, 2) for name in BEYOND}
    return pd.DataFrame(names, columns=["image_id", "car"]).assign(dice=np.repeat(dice, 2), **beyond)


@pytest.mark.parametrize(("gains", "better", "worse", "p_value", "verdict"), [
    (0.001, 12, 0, 2 * 0.5**12, "better"), (-0.001, 0, 12, 2 * 0.5**12, "worse"),
    (LUCKY, 1, 11, 26 * 0.5**12, UNCLEAR), (0, 0, 0, 1, UNCLEAR),
])  # fmt: skip
def test_a_small_gain_of_every_car_is_no_noise_and_that_of_a_lucky_one_is(gains, better, worse, p_value, verdict):
    comparison = compare(table(DICE), table(DICE + gains))
    assert (comparison.gain, comparison.p_value) == pytest.approx((np.mean(gains), p_value))
    assert (comparison.gaining, comparison.losing, comparison.verdict) == (better, worse, verdict)


def test_photos_that_both_have_are_compared_and_described():
    summaries = [{"experiment": name, "dice": 0.98, "photos": 16, "tta": ["identity", "hflip"]} for name in ("a", "b")]
    comparison = compare(table(DICE[:8]), table(DICE[:7] + GAINS))
    assert comparison_lines(*summaries, comparison) == [
        "a: 0.98000 of 16 photos, views identity + hflip", "b: 0.98000 of 16 photos, views identity + hflip",
        "b less a, on 14 photos of 7 cars: +0.01457",
        "  95 % of cars drawn anew: {:+.5f} to {:+.5f}".format(*comparison.interval),
        *("  error beyond {} px of the true contour: -0.00729 ({:+.5f} to {:+.5f})".format(
            pixels, *comparison.errors[name]["interval"]) for name, pixels in BEYOND.items()),
        "  5 cars gain, 1 lose; sign test p = 0.219",
        "  car01 -0.00200", "  car03 +0.00000", "  car02 +0.00400",
        "  car04 +0.02000", "  car05 +0.03000", "  car06 +0.04000", "b against a: better",
    ]  # fmt: skip
    with pytest.raises(InputError, match="share no photo"):
        compare(table(DICE), table(DICE).assign(image_id="x"))
