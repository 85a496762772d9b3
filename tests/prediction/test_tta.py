"""A view is undone pixel by pixel; the mean over views is of their probabilities."""

import pytest
import torch

from carvana.errors import InputError
from carvana.prediction.tta import TTA, parse_view, parse_views

SLOPE = torch.linspace(0, 255, 40).expand(1, 3, 24, 40)


def leftmost(images: torch.Tensor) -> torch.Tensor:
    """A 'model' that is sure of the left column, whatever it sees, and undecided elsewhere."""
    return (100.0 * (torch.arange(images.shape[-1]) == 0)).expand(len(images), 1, *images.shape[-2:])


@pytest.mark.parametrize("name", ["identity", "hflip", "scale0.75", "scale1.25", "hflip+scale2", "scale0.75+scale1.25"])
def test_every_view_is_undone(name):
    shown, undo = parse_view(name)(SLOPE)
    undone = undo(shown)
    assert torch.equal(undone, SLOPE) or ("scale" in name and undone.shape == SLOPE.shape)
    assert torch.allclose(undone[..., 3:-3], SLOPE[..., 3:-3], atol=0.6)  # a tenth of a column
    assert (undone - SLOPE).abs().max() < 6  # less than one column of the slope


def test_views_show_what_their_names_say_and_their_probabilities_are_averaged():
    smaller, _ = parse_view("scale0.75")(SLOPE.to(torch.uint8))
    assert (smaller.shape, smaller.dtype) == ((1, 3, 18, 30), torch.uint8)
    assert TTA(leftmost, ["identity", "hflip"])(SLOPE)[0, 0, 0].tolist() == [0.75, *[0.5] * 38, 0.75]
    tta = TTA(lambda images: images[:, :1].float() / 255, ["identity", "hflip", "scale2"])
    assert tta.each(SLOPE).shape == (1, 3, 24, 40)
    assert torch.equal(tta.each(SLOPE).mean(1, keepdim=True), tta(SLOPE))
    assert torch.allclose(tta(SLOPE), (SLOPE[:, :1] / 255).sigmoid(), atol=2e-3)


@pytest.mark.parametrize(("tta", "views"), [("none", ""), ("hflip", "hflip"), ("identity,hflip,hflip", "hflip"),
                                            ("scale1.25,hflip+scale0.5", "scale1.25 hflip+scale0.5")])  # fmt: skip
def test_the_photo_itself_is_always_a_view(tta, views):
    assert parse_views(tta) == ["identity", *views.split()]


@pytest.mark.parametrize("wrong", ["vflip", "scale", "scale3", "scale1", "scale-1", "scale2x", "hflip+"])
def test_views_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=r"^--tta hflip,.*: no view is named .*; choose from none, identity, .*$"):
        parse_views(f"hflip,{wrong}")
