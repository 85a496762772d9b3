import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from carvana.config import parse_config
from carvana.contour import contour_distance
from carvana.errors import InputError
from carvana.losses import (
    LOSSES,
    bce,
    bce_dice,
    bce_log_dice,
    border_bce_dice,
    boundary,
    focal,
    lovasz_hinge,
    soft_dice,
    tversky,
    weighted_sum,
)

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def logits_of(probs: torch.Tensor) -> torch.Tensor:
    return torch.logit(probs.clamp(1e-6, 1 - 1e-6))


def images(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None, :]


def disc(radius: float, size: int = 64) -> torch.Tensor:
    axis = torch.arange(size) - size / 2 + 0.5
    return (axis[:, None].square() + axis.square() < radius**2).float()[None, None]


def thirds(*pattern: float) -> torch.Tensor:
    """A hundred times three pixels, so that the one pixel of smoothing adds little."""
    return torch.tensor(pattern, dtype=torch.float32).repeat(100).reshape(1, 1, 1, 300)


# What every loss keeps to


@every_loss
def test_ideal_prediction_costs_nothing(loss):
    masks = torch.cat([disc(20), disc(0), disc(64)])  # the second is empty, the third full
    assert loss(40 * masks - 20, masks).tolist() == pytest.approx([0, 0, 0], abs=1e-4)


@every_loss
def test_the_more_is_wrong_the_more_it_costs_and_the_opposite_costs_most(loss):
    masks = disc(20)
    costs = [loss(logits_of(masks + wrong * (1 - 2 * masks)), masks).item() for wrong in (0, 0.4, 0.5, 0.75, 1)]
    assert costs == sorted(set(costs))


@every_loss
def test_losses_are_per_image(loss):
    logits, masks = 3 * torch.randn(3, 1, 16, 24), torch.cat([disc(6, 24), disc(0, 24), disc(24, 24)])[:, :, 4:20]
    alone = [loss(logits[[i]], masks[[i]]).item() for i in range(3)]
    assert loss(logits, masks).tolist() == pytest.approx(alone, rel=1e-5)
    masks = images([1, 1, 0, 0], [1, 1, 0, 0])
    good, bad = loss(logits_of(images([1, 1, 0, 0], [0, 0, 1, 1])), masks)
    assert good < 1e-3 < bad


@every_loss
def test_a_share_of_a_pixel_is_learnt_as_such(loss):
    """Half of an image is car, a strip beside it has a coverage of 0.3, and only the strip's prediction varies."""
    masks = torch.tensor([0.0] * 4 + [0.3] + [1.0] * 4).repeat(8, 1)[None, None]
    grid = [share / 10 for share in range(1, 10)]
    costs = [loss(logits_of(torch.where(masks == 0.3, p, masks)), masks).item() for p in grid]
    if loss is lovasz_hinge:  # the only one of whole pixels
        assert costs[0] == 0
        assert costs == sorted(costs)
    else:
        assert grid[costs.index(min(costs))] == 0.3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("magnitude", [0.0, 100.0, -100.0, 65504.0, -65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_and_gradients_are_finite_as_far_as_fp16_reaches(name, value, magnitude, dtype):
    logits = torch.full((2, 1, 4, 4), magnitude, dtype=dtype, requires_grad=True)
    costs = weighted_sum({name: 1})(logits, torch.full((2, 1, 4, 4), value))
    costs.sum().backward()
    assert costs.dtype == torch.float32
    assert torch.isfinite(costs).all()
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_gradients_are_finite_along_a_contour(loss):
    logits = logits_of(disc(22)).requires_grad_()
    loss(logits, disc(20)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"lovasz_hinge"}))
def test_nothing_is_read_back_from_the_device(name):
    """Tensors on the meta device have no values; lovasz_hinge alone asks how many pixels it has to sort."""
    logits, masks = torch.empty(2, 2, 32, 48, device="meta"), torch.empty(2, 1, 32, 48, device="meta")
    assert weighted_sum({name: 1})(logits, masks).shape == (2,)


# One by one


def test_worst_prediction_costs_one_in_dice_and_more_in_logarithms():
    masks = (torch.arange(4096) % 2).float().reshape(1, 1, 64, 64)
    worst = logits_of(1 - masks)
    assert soft_dice(worst, masks).item() == pytest.approx(1, abs=1e-3)
    assert tversky(worst, masks).item() == pytest.approx(1, abs=1e-3)
    assert bce(worst, masks).item() > 10
    assert bce_log_dice(worst, masks).item() > 18


def test_one_third_case():
    """Of two car pixels one is hit, and one is found too many: Dice is 1/2, Jaccard 1/3."""
    masks, logits = thirds(1, 1, 0), logits_of(thirds(1, 0, 1))
    dice, cross_entropy = 201 / 401, 2 / 3 * -math.log(1e-6)
    near = lambda value: pytest.approx(value, abs=2e-4, rel=1e-3)
    assert soft_dice(logits, masks).item() == near(1 - dice)
    assert bce_dice(logits, masks).item() == near(cross_entropy + 1 - dice)
    assert bce_log_dice(logits, masks).item() == near(cross_entropy - math.log(dice))
    assert border_bce_dice(logits, masks).item() == near(cross_entropy + 1 - dice)  # no pixel is far from a contour
    assert tversky(logits, masks).item() == near(1 - 101 / 201)
    assert tversky(logits, masks, alpha=1, beta=1).item() == near(1 - 101 / 301)
    assert lovasz_hinge(10 * logits.sign(), masks).item() == near(11 * 2 / 3)


def test_an_empty_mask_predicted_empty_costs_nothing():
    empty = torch.zeros(1, 1, 8, 8)
    assert soft_dice(logits_of(empty), empty).item() == pytest.approx(0, abs=1e-4)


def test_tversky_weighs_too_much_and_too_little():
    masks = thirds(1, 1, 0)
    too_much, too_little = logits_of(thirds(1, 1, 1)), logits_of(thirds(1, 0, 0))
    assert tversky(too_much, masks, alpha=0.2, beta=0.8) < tversky(too_little, masks, alpha=0.2, beta=0.8)
    assert tversky(too_much, masks, alpha=0.8, beta=0.2).item() == pytest.approx(1 - 201 / 281, abs=1e-4)
    assert tversky(too_little, masks, alpha=0.8, beta=0.2).item() == pytest.approx(1 - 101 / 121, abs=1e-4)


def test_focal_lowers_what_is_nearly_right():
    masks, probs = images([1.0]), images([0.75])
    assert focal(logits_of(probs), masks, gamma=2, alpha=0.6).item() == pytest.approx(0.6 * 0.25**2 * -math.log(0.75))
    assert focal(logits_of(probs), 1 - masks, gamma=1, alpha=0.6).item() == pytest.approx(0.4 * 0.75 * -math.log(0.25))
    logits = torch.randn(2, 1, 8, 8)
    assert torch.allclose(focal(logits, logits.sigmoid().round(), gamma=0), bce(logits, logits.sigmoid().round()) / 2)


def test_focal_has_a_slope_below_one():
    logits = logits_of(images([0.3, 1.0])).requires_grad_()
    focal(logits, logits.detach().sigmoid(), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_a_wrong_pixel_at_the_contour_costs_more_than_one_far_from_it():
    masks = torch.zeros(1, 1, 32, 32)
    masks[..., 16:] = 1

    def cost(column: int) -> float:
        probs = masks.clone()
        probs[..., 16, column] = 1 - probs[..., 16, column]
        return border_bce_dice(40 * probs - 20, masks, ring=4).item()

    costs = [cost(column) for column in range(32)]
    assert min(costs[12:20]) > 2 * max(costs[:12] + costs[20:])  # the ring is 4 columns on either side
    # The ring is a quarter of the image: weights 3 and 1 become 2 and 2/3. A background pixel found as car, at 20:
    assert costs[12:16] == pytest.approx([2 * 20 / 1024 + 1 - 1025 / 1027] * 4, rel=1e-4)
    logits = torch.randn(1, 1, 32, 32)
    assert torch.allclose(border_bce_dice(logits, masks, emphasis=1), bce_dice(logits, masks))


def choquet(errors: list[float], car: list[bool]) -> float:
    """The Jaccard loss of the set of pixels whose error passes a threshold, integrated over the threshold."""
    levels, total = sorted({0.0, *errors}), 0.0
    for low, high in pairwise(levels):
        wrong = [error >= high for error in errors]
        union = sum(w or c for w, c in zip(wrong, car, strict=True))
        total += (high - low) * sum(wrong) / union
    return total


@pytest.mark.parametrize("car_pixels", range(7))
def test_lovasz_hinge_is_the_extension_of_the_jaccard_loss(car_pixels):
    car = [i < car_pixels for i in range(6)]
    for logits in torch.randn(20, 6) * 2:
        errors = [max(0.0, 1 - x if c else 1 + x) for x, c in zip(logits.tolist(), car, strict=True)]
        cost = lovasz_hinge(logits.reshape(1, 1, 2, 3), torch.tensor(car).float().reshape(1, 1, 2, 3))
        assert cost.item() == pytest.approx(choquet(errors, car), rel=1e-4)


def test_lovasz_hinge_keeps_its_digits_in_large_images():
    """Against differences of Jaccard scores in float64, as in the authors' code."""
    logits, masks = torch.randn(1, 1, 600, 900), disc(500, 900)[:, :, 150:750]
    errors = torch.relu(1 - logits * (2 * masks - 1)).flatten().double()
    errors, order = errors.sort(descending=True)
    car = masks.flatten()[order].double()
    jaccard = 1 - (car.sum() - car.cumsum(0)) / (car.sum() + (1 - car).cumsum(0))
    expected = errors @ torch.diff(jaccard, prepend=torch.zeros(1))
    assert lovasz_hinge(logits, masks).item() == pytest.approx(expected.item(), rel=1e-5)


def test_boundary_costs_more_the_further_a_contour_moves_either_way():
    masks = disc(16)
    outward = [boundary(logits_of(disc(radius)), masks).item() for radius in range(16, 30, 2)]
    inward = [boundary(logits_of(disc(radius)), masks).item() for radius in range(16, 4, -2)]
    for costs in (outward, inward):
        assert costs == sorted(set(costs))
        assert costs[2] > 2.5 * costs[1]  # a ring of twice the width, and further away


def test_boundary_is_the_signed_distance_times_the_probability_up_to_a_constant():
    masks, probs = images([0, 0, 0, 1, 1, 1]), torch.rand(1, 1, 1, 6)
    signed = torch.tensor([2, 1.5, 0.5, -0.5, -1.5, -2]) / 2
    constant = (0.5 + 1.5 + 2) / 2 / 6
    expected = (signed * probs).mean().item() + constant
    assert boundary(logits_of(probs), masks, width=2).item() == pytest.approx(expected, abs=1e-6)


def test_boundary_without_a_contour_is_the_mean_error():
    logits = logits_of(torch.full((2, 1, 8, 8), 0.25))
    masks = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    assert boundary(logits, masks).tolist() == pytest.approx([0.25, 0.75])


def test_contour_distance_is_nearly_euclidean_and_ends_at_its_reach():
    masks = disc(20, 128)
    edge = (contour_distance(masks, 1) == 0.5)[0, 0].numpy()
    euclidean = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) + 0.5
    distance = contour_distance(masks, 30)[0, 0].numpy()
    inside = distance < 30
    assert np.abs(distance - euclidean)[inside].max() < 1 + 0.07 * 30
    assert distance.max() == 30
    assert contour_distance(images([0, 0, 0, 0, 0.4, 0.5]), 3).flatten().tolist() == [3, 3, 2.5, 1.5, 0.5, 0.5]
    assert (contour_distance(torch.zeros(1, 1, 8, 8), 5) == 5).all()


# The sum of losses, as it is configured


def test_weighted_sum_adds_up_in_float32():
    logits, masks = torch.randn(2, 1, 4, 4).bfloat16(), torch.rand(2, 1, 4, 4)
    total = weighted_sum({"bce": 0.2, "soft_dice": 0.8})(logits, masks)
    assert total.dtype == torch.float32
    assert torch.allclose(total, 0.2 * bce(logits.float(), masks) + 0.8 * soft_dice(logits.float(), masks))


def test_weighted_sum_passes_parameters_on():
    logits, masks = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    total = weighted_sum({"tversky": {"weight": 2, "alpha": 1, "beta": 1}, "bce": 1})(logits, masks)
    assert torch.allclose(total, 2 * tversky(logits, masks, alpha=1, beta=1) + bce(logits, masks))


def test_coarser_levels_count_half_as_much_each():
    logits, masks = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    levels = [bce(logits[:, [level]], masks) for level in range(3)]
    expected = (4 * levels[0] + 2 * levels[1] + levels[2]) / 7
    assert torch.allclose(weighted_sum({"bce": 1})(logits, masks), expected)


def test_configuration_fills_in_the_parameters_left_out():
    config = parse_config({"name": "x", "loss": {"bce": 1, "border_bce_dice": {"weight": 0.5, "ring": 10}}}, "test")
    assert config.loss == {"bce": 1.0, "border_bce_dice": {"weight": 0.5, "ring": 10, "emphasis": 3.0}}
    assert parse_config(config.model_dump(mode="json"), "test") == config
    assert config == parse_config({"name": "x", "loss": config.loss}, "test")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"bcee": 1}, "no loss is named bcee; choose from bce, soft_dice, .*boundary"),
        ({"bce": -1}, r"bce\.weight = -1: .*greater than 0"),
        ({"bce": None}, r"bce\.weight = None: .*number"),
        ({"bce": {"ring": 1}}, r"bce\.ring: no such parameter; choose from weight"),
        ({"border_bce_dice": {"rign": 15}}, r"border_bce_dice\.rign: .*choose from weight, ring, emphasis"),
        ({"border_bce_dice": {"ring": 0}}, r"border_bce_dice\.ring = 0: .*greater than or equal to 1"),
        ({"border_bce_dice": {"ring": 2.5}}, r"border_bce_dice\.ring = 2\.5: .*integer"),
        ({"border_bce_dice": {"emphasis": 0.5}}, r"emphasis = 0\.5: .*greater than or equal to 1"),
        ({"focal": {"gamma": -1, "alpha": 1}}, r"focal\.gamma = -1: .*; focal\.alpha = 1: .*less than 1"),
        ({"tversky": {"weight": 0}}, r"tversky\.weight = 0: .*greater than 0"),
        ({"boundary": {"width": float("nan")}}, r"boundary\.width = nan"),
        ("bce", "loss = 'bce': .*dictionary"),
        ({}, "at least 1"),
    ],
)
def test_a_wrong_loss_is_refused_by_one_line(loss, message):
    with pytest.raises(InputError, match=message) as error:
        parse_config({"name": "x", "loss": loss}, "test")
    assert "\n" not in str(error.value)
