import numpy as np
import pytest
import torch

from carvana.metrics import THRESHOLDS, bootstrap_interval, dice, dice_curve


def test_dice_of_one_third_overlap():
    prediction, mask = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    assert dice(prediction, mask) == 0.5
    assert dice(mask, mask) == 1.0
    assert dice(~mask, mask) == 0.0


def test_two_empty_masks_agree():
    empty = torch.zeros(2, 2, dtype=torch.bool)
    assert dice(empty, empty) == 1.0
    assert dice(~empty, empty) == 0.0


def test_curve_is_dice_at_every_threshold():
    torch.manual_seed(0)
    probs, mask = torch.rand(37, 53), torch.rand(37, 53) < 0.4
    expected = [dice(probs >= threshold, mask) for threshold in THRESHOLDS]
    assert dice_curve(probs, mask).tolist() == pytest.approx(expected, abs=2e-3)  # a pixel exactly at a level


def test_curve_at_the_ends_of_the_range():
    probs, mask = torch.tensor([[0.0, 1.0]]), torch.tensor([[False, True]])
    assert dice_curve(probs, mask).tolist() == [1.0] * 99
    assert dice_curve(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)).tolist() == [1.0] * 99


def test_bootstrap_draws_cars_and_not_photos():
    per_car = np.random.default_rng(1).normal(0.99, 0.01, 50)
    low, high = bootstrap_interval(np.repeat(per_car, 16), np.repeat(np.arange(50), 16))
    assert low < per_car.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * per_car.std() / 50**0.5, rel=0.1)  # not 16 times the sample
    assert bootstrap_interval(np.full(6, 0.5), list("aaabbc")) == [0.5, 0.5]
