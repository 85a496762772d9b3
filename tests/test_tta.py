import pytest
import torch

from carvana.ensemble import Ensemble
from carvana.errors import InputError
from carvana.tta import TTA, mean_of_views, parse_view, parse_views


def brightness(images: torch.Tensor) -> torch.Tensor:
    """A 'model' whose logits are the first channel: it commutes with every view."""
    return images[:, :1].float()


def leftmost(images: torch.Tensor) -> torch.Tensor:
    """A 'model' that marks the left column, whatever it sees."""
    logits = torch.full_like(images[:, :1].float(), -100)
    logits[..., 0] = 100
    return logits


torch.manual_seed(0)
IMAGES = torch.randn(2, 3, 5, 7)
SLOPE = torch.linspace(0, 255, 40).expand(1, 3, 24, 40)


@pytest.mark.parametrize("name", ["identity", "hflip", "shift16", "shift0x31", "hflip+shift8x24", "shift3+hflip"])
def test_every_view_is_undone(name):
    seen, undo = parse_view(name)(IMAGES)
    assert torch.equal(undo(seen), IMAGES)


@pytest.mark.parametrize("name", ["scale0.75", "scale1.25", "hflip+scale2", "scale0.5+shift5x0"])
def test_a_scale_is_undone_as_far_as_pixels_go(name):
    seen, undo = parse_view(name)(SLOPE)
    assert undo(seen).shape == SLOPE.shape
    assert torch.allclose(undo(seen)[..., 3:-3], SLOPE[..., 3:-3], atol=0.6)  # a tenth of a column
    assert (undo(seen) - SLOPE).abs().max() < 6  # less than one column of the slope


def test_views_see_what_their_names_say():
    seen, _ = parse_view("scale0.75")(SLOPE.to(torch.uint8))
    assert (seen.shape, seen.dtype) == ((1, 3, 18, 30), torch.uint8)
    seen, _ = parse_view("shift2x0")(IMAGES)
    assert seen.shape == (2, 3, 5 + 32, 7)
    assert torch.equal(seen[..., 2:7, :], IMAGES)
    assert torch.equal(seen[..., :2, :], IMAGES[..., [2, 1], :])  # mirrored, not wrapped around
    seen, _ = parse_view("shift4")(IMAGES)
    assert torch.equal(seen[..., 4:9, 4:11], IMAGES)


def test_views_average_probabilities_or_logits():
    assert torch.allclose(TTA(brightness, ["identity", "hflip"])(IMAGES), IMAGES[:, :1].sigmoid())
    probs = TTA(leftmost, ["identity", "hflip"])(IMAGES)
    assert probs[0, 0, 0].tolist() == [0.5, 0, 0, 0, 0, 0, 0.5]

    twice = TTA(lambda images: brightness(images) * torch.arange(1, 8), ["identity", "hflip"], mean="logits")
    expected = (IMAGES[:, :1] * torch.arange(1, 8) + IMAGES[:, :1] * torch.arange(7, 0, -1)) / 2
    assert torch.allclose(twice(IMAGES), expected.sigmoid())


@pytest.mark.parametrize("mean", ["probs", "logits"])
def test_mean_of_views_is_what_the_predictor_makes_of_them(mean):
    predictor = TTA(lambda images: 0.5 * leftmost(images) / 100, ["identity", "hflip", "shift4"], mean=mean)
    assert predictor.each(IMAGES).shape == (2, 3, 5, 7)
    assert torch.allclose(mean_of_views(predictor.each(IMAGES).movedim(1, 0), mean)[:, None], predictor(IMAGES))


def test_views_of_equal_size_may_share_a_forward():
    sizes = []

    def model(images: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape))
        return brightness(images) * torch.linspace(-1, 1, images.shape[-1])

    views = ["identity", "scale2", "hflip", "shift4", "shift8"]
    apart = TTA(model, views).each(IMAGES)
    sizes.clear()
    assert torch.equal(TTA(model, views, together=True).each(IMAGES), apart)
    assert sizes == [(4, 3, 5, 7), (2, 3, 10, 14), (4, 3, 37, 39)]


def test_parse_views():
    assert parse_views("none") == ["identity"]
    assert parse_views("hflip") == parse_views("identity,hflip") == ["identity", "hflip"]
    assert parse_views("hflip+scale1.25,shift16") == ["identity", "hflip+scale1.25", "shift16"]
    with pytest.raises(InputError, match="--tta vflip: no view is named vflip; choose from none, identity, hflip") as e:
        parse_views("vflip")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "wrong", ["scale", "scale3", "scale1", "scale-1", "shift32", "shift0", "shift-8", "shift8x", "hflip+"]
)
def test_views_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="no view is named"):
        parse_views(f"hflip,{wrong}")


def test_ensembles_average_and_nest():
    zero, one = (lambda images: torch.zeros(1)), (lambda images: torch.ones(1))
    assert Ensemble([zero, one])(IMAGES).item() == 0.5
    assert Ensemble([zero, one], [1, 3])(IMAGES).item() == 0.75
    assert Ensemble([Ensemble([zero, one]), one])(IMAGES).item() == 0.75
    for predictors, weights in [([], None), ([zero], [1, 2]), ([zero, one], [1, -1]), ([zero], [0])]:
        with pytest.raises(ValueError, match="predictors need as many weights"):
            Ensemble(predictors, weights)
