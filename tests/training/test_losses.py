import math

import cv2
import numpy as np
import pytest
import torch

from carvana.config import LossConfig
from carvana.training.contour import contour_distance
from carvana.training.losses import LOSSES, Loss, bce, lovasz_hinge, tversky, weighted_sum

every_loss = pytest.mark.parametrize("name", LOSSES)


def loss_of(name: str, **settings: float) -> Loss:
    """A loss with its settings, or the configured defaults."""
    return weighted_sum(LossConfig.model_validate({name: settings}))


def logits_of(probs: torch.Tensor) -> torch.Tensor:
    return torch.logit(probs.clamp(1e-6, 1 - 1e-6))


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def disc(radius: float, size: int = 64) -> torch.Tensor:
    axis = torch.arange(size) - size / 2 + 0.5
    return (axis[:, None].square() + axis.square() < radius**2).float()[None, None]


@every_loss
def test_an_ideal_prediction_of_each_image_costs_nothing_and_the_opposite_costs_most(name):
    loss, masks = loss_of(name), torch.cat([disc(20), disc(0), disc(64)])  # the second is empty, the third full
    assert loss(40 * masks - 20, masks).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    wrong_by = lambda share: logits_of(disc(20) + share * (1 - 2 * disc(20)))
    costs = [loss(wrong_by(share), disc(20)).item() for share in (0, 0.4, 0.5, 0.75, 1)]
    assert costs == sorted(set(costs))
    logits = 3 * torch.randn(3, 1, 64, 64)
    assert loss(logits, masks).tolist() == pytest.approx([loss(logits[[i]], masks[[i]]).item() for i in range(3)])


@every_loss
def test_a_share_of_a_pixel_is_learnt_as_such(name):
    """Half of an image is car, a strip beside it has a coverage of 0.3, and only the strip's prediction varies."""
    masks = pixels(*[0.0] * 4, 0.3, *[1.0] * 4).repeat(1, 1, 8, 1)
    shares = [share / 10 for share in range(1, 10)]
    costs = [loss_of(name)(logits_of(torch.where(masks == 0.3, p, masks)), masks).item() for p in shares]
    if name == "lovasz_hinge":  # the only one of whole pixels, and that asks how many it has to sort
        assert costs[0] == 0
        assert costs == sorted(costs)
    else:
        assert shares[costs.index(min(costs))] == 0.3
        logits, masks = torch.empty(2, 2, 32, 48, device="meta"), torch.empty(2, 1, 32, 48, device="meta")
        assert loss_of(name)(logits, masks).shape == (2,)  # nothing is read back from the device


@every_loss
def test_losses_and_gradients_are_finite_as_far_as_fp16_reaches(name):
    magnitudes = torch.tensor([0.0, 100.0, -100.0, 65504.0, -65504.0], dtype=torch.float16)
    for value in (0.0, 0.3, 1.0):
        logits = magnitudes.view(5, 1, 1, 1).repeat(1, 1, 4, 4).requires_grad_()
        costs = loss_of(name)(logits, torch.full((5, 1, 4, 4), value))
        costs.sum().backward()
        assert costs.dtype == torch.float32
        assert torch.isfinite(torch.cat([costs, logits.grad.flatten()])).all()
    logits = logits_of(disc(22)).requires_grad_()  # along a contour
    loss_of(name)(logits, disc(20)).sum().backward()
    assert 0 < logits.grad.abs().sum() < math.inf


def test_worst_and_one_third_case():
    """Of two car pixels one is hit, and one is found too many: Dice is 1/2, Jaccard 1/3. All of it a hundred times."""
    masks, logits = pixels(*[1, 1, 0] * 100), logits_of(pixels(*[1, 0, 1] * 100))
    dice, cross_entropy = 201 / 401, 2 / 3 * -math.log(1e-6)
    expected = {
        "soft_dice": 1 - dice, "bce_log_dice": cross_entropy - math.log(dice),
        "border_bce_dice": cross_entropy + 1 - dice, "tversky": 1 - 101 / 201,
    }  # fmt: skip
    costs = {name: loss_of(name)(logits, masks).item() for name in expected}  # no pixel is far from a contour
    assert costs == pytest.approx(expected, abs=2e-4, rel=1e-3)
    assert lovasz_hinge(10 * logits.sign(), masks).item() == pytest.approx(11 * 2 / 3)
    worst = {name: loss_of(name)(logits_of(1 - masks), masks).item() for name in ("soft_dice", "tversky", "bce")}
    assert list(worst.values()) == pytest.approx([1, 1, -math.log(1e-6)], rel=0.02)
    too_much, too_little = logits_of(pixels(*[1, 1, 1] * 100)), logits_of(pixels(*[1, 0, 0] * 100))
    costs = [loss_of("tversky", alpha=0.8, beta=0.2)(logits, masks).item() for logits in (too_much, too_little)]
    assert costs == pytest.approx([1 - 201 / 281, 1 - 101 / 121], abs=1e-4)


def test_focal_lowers_what_is_nearly_right():
    logits, loss = logits_of(pixels(0.75)), loss_of("focal", gamma=2, alpha=0.6)
    assert loss(logits, pixels(1)).item() == pytest.approx(0.6 * 0.25**2 * -math.log(0.75))
    assert loss(logits, pixels(0)).item() == pytest.approx(0.4 * 0.75**2 * -math.log(0.25))
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    loss_of("focal", gamma=0.5)(logits, logits.detach().sigmoid()).sum().backward()  # the slope of a root at 0
    assert torch.isfinite(logits.grad).all()


def test_a_wrong_pixel_at_the_contour_costs_more_than_one_far_from_it():
    masks, costs = (torch.arange(32) >= 16).float().repeat(1, 1, 32, 1), []
    for column in range(32):
        probs = masks.clone()
        probs[..., 16, column] = 1 - probs[..., 16, column]
        costs.append(loss_of("border_bce_dice", ring=4)(40 * probs - 20, masks).item())
    assert min(costs[12:20]) > 2 * max(costs[:12] + costs[20:])  # the ring is 4 columns on either side
    # The ring is a quarter of the image: weights 3 and 1 become 2 and 2/3. A background pixel found as car, at 20:
    assert costs[12:16] == pytest.approx([2 * 20 / 1024 + 1 - 1025 / 1027] * 4, rel=1e-4)


@pytest.mark.parametrize("car_pixels", [0, 1, 3, 6, 200_000])
def test_lovasz_hinge_is_the_extension_of_the_jaccard_loss(car_pixels):
    """Also in large images: the Jaccard score after each pixel is computed in float64, as in the authors' code."""
    size = (600, 900) if car_pixels > 6 else (2, 3)
    masks = (torch.randperm(math.prod(size)) < car_pixels).float().view(1, 1, *size)
    for logits in 2 * torch.randn(3, 1, 1, *size):
        errors, order = torch.relu(1 - logits * (2 * masks - 1)).flatten().double().sort(descending=True)
        car = masks.flatten()[order].double()
        jaccard = 1 - (car.sum() - car.cumsum(0)) / (car.sum() + (1 - car).cumsum(0))
        expected = errors @ torch.diff(jaccard, prepend=torch.zeros(1))
        assert lovasz_hinge(logits, masks).item() == pytest.approx(expected.item(), rel=1e-5)


def test_boundary_is_the_signed_distance_times_the_probability_up_to_a_constant():
    masks, probs, signed = pixels(0, 0, 0, 1, 1, 1), torch.rand(1, 1, 1, 6), pixels(2, 1.5, 0.5, -0.5, -1.5, -2) / 2
    expected = (signed * probs).mean().item() + (0.5 + 1.5 + 2) / 2 / 6
    assert loss_of("boundary", width=2)(logits_of(probs), masks).item() == pytest.approx(expected, abs=1e-6)
    masks = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])  # without a contour it is the mean error
    logits = logits_of(torch.full((2, 1, 8, 8), 0.25))
    assert loss_of("boundary")(logits, masks).tolist() == pytest.approx([0.25, 0.75])


def test_contour_distance_is_nearly_euclidean_and_ends_at_its_reach():
    masks = disc(20, 128)
    edge = (contour_distance(masks, 1) == 0.5)[0, 0].numpy()
    euclidean = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) + 0.5
    distance = contour_distance(masks, 30)[0, 0].numpy()
    assert np.abs(distance - euclidean)[distance < 30].max() < 1 + 0.07 * 30
    assert distance.max() == 30
    assert contour_distance(pixels(0, 0, 0, 0, 0.4, 0.5), 3).flatten().tolist() == [3, 3, 2.5, 1.5, 0.5, 0.5]
    assert (contour_distance(torch.zeros(1, 1, 8, 8), 5) == 5).all()


def test_configured_losses_add_up_in_float32_and_coarser_levels_count_half_as_much_each():
    assert list(LossConfig.model_fields) == list(LOSSES)
    logits, masks = torch.randn(2, 3, 4, 4).bfloat16(), torch.rand(2, 1, 4, 4)
    first, second, third = logits.float().split(1, dim=1)
    total = weighted_sum(LossConfig(tversky={"weight": 2, "alpha": 1, "beta": 1}, bce=0.2))(logits[:, :1], masks)
    assert total.dtype == torch.float32
    assert torch.allclose(total, 2 * tversky(first, masks, alpha=1, beta=1) + 0.2 * bce(first, masks))
    levels = [bce(level, masks) for level in (first, second, third)]
    assert torch.allclose(loss_of("bce")(logits, masks), (4 * levels[0] + 2 * levels[1] + levels[2]) / 7)
