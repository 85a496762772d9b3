import pytest
import torch

from carvana.losses import LOSSES, bce, soft_dice, weighted_sum


def logits_of(probs: torch.Tensor) -> torch.Tensor:
    return torch.logit(probs.clamp(1e-6, 1 - 1e-6))


def images(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None, :]


def test_ideal_prediction_costs_nothing():
    masks = images([1, 1, 0, 0], [0, 0, 0, 1])
    for loss in LOSSES.values():
        assert loss(logits_of(masks), masks).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_worst_prediction_costs_most():
    masks = (torch.arange(4096) % 2).float().reshape(1, 1, 64, 64)
    assert soft_dice(logits_of(1 - masks), masks).item() == pytest.approx(1, abs=1e-3)
    assert bce(logits_of(1 - masks), masks).item() > 10


def test_one_third_case():
    """Of two car pixels one is hit, and one is found too many: Dice is 1/2. A hundred times, so that the one
    pixel of smoothing adds little.
    """
    masks = torch.tensor([1.0, 1.0, 0.0]).repeat(100).reshape(1, 1, 1, 300)
    probs = torch.tensor([1.0, 0.0, 1.0]).repeat(100).reshape(1, 1, 1, 300)
    assert soft_dice(logits_of(probs), masks).item() == pytest.approx(1 - 201 / 401, abs=1e-4)


def test_soft_dice_is_lowest_at_the_coverage_itself():
    masks = torch.full((1, 1, 8, 8), 0.3)
    losses = {p: soft_dice(logits_of(torch.full_like(masks, p)), masks).item() for p in (0.2, 0.3, 0.4, 1.0)}
    assert min(losses, key=losses.get) == 0.3


def test_losses_are_per_image():
    masks = images([1, 1, 0, 0], [1, 1, 0, 0])
    probs = images([1, 1, 0, 0], [0, 0, 1, 1])
    for loss in LOSSES.values():
        good, bad = loss(logits_of(probs), masks)
        assert good < 1e-3 < bad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("magnitude", [0.0, 100.0, -100.0])
def test_gradients_are_finite_for_empty_and_full_masks(name, value, magnitude):
    logits = torch.full((2, 1, 4, 4), magnitude, requires_grad=True)
    LOSSES[name](logits, torch.full((2, 1, 4, 4), value)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_an_empty_mask_predicted_empty_costs_nothing():
    empty = torch.zeros(1, 1, 8, 8)
    assert soft_dice(logits_of(empty), empty).item() == pytest.approx(0, abs=1e-4)


def test_weighted_sum_adds_up_in_float32():
    logits, masks = torch.randn(2, 1, 4, 4).bfloat16(), torch.rand(2, 1, 4, 4)
    total = weighted_sum({"bce": 0.2, "soft_dice": 0.8})(logits, masks)
    assert total.dtype == torch.float32
    assert torch.allclose(total, 0.2 * bce(logits.float(), masks) + 0.8 * soft_dice(logits.float(), masks))
