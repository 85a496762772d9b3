import pytest
import torch

from carvana.metrics import THRESHOLDS, dice, dice_curve


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
