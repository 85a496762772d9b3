import pytest
import torch

from carvana.ensemble import Ensemble
from carvana.errors import InputError
from carvana.tta import TTA, VIEWS, parse_views


def brightness(images: torch.Tensor) -> torch.Tensor:
    """A 'model' whose logits are the first channel: it commutes with every flip."""
    return images[:, :1].float()


def leftmost(images: torch.Tensor) -> torch.Tensor:
    """A 'model' that marks the left column, whatever it sees."""
    logits = torch.full_like(images[:, :1].float(), -100)
    logits[..., 0] = 100
    return logits


IMAGES = torch.randn(2, 3, 5, 7)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_undone(name):
    view = VIEWS[name]
    assert torch.equal(view.undo(view.apply(IMAGES)), IMAGES)


def test_views_average_probabilities():
    assert torch.allclose(TTA(brightness, ["identity", "hflip"])(IMAGES), IMAGES[:, :1].sigmoid())
    probs = TTA(leftmost, ["identity", "hflip"])(IMAGES)
    assert probs[0, 0, 0].tolist() == [0.5, 0, 0, 0, 0, 0, 0.5]


def test_parse_views():
    assert parse_views("none") == ["identity"]
    assert parse_views("hflip") == parse_views("identity,hflip") == ["identity", "hflip"]
    with pytest.raises(InputError, match="--tta vflip: no view is named vflip; choose from none, identity, hflip"):
        parse_views("vflip")


def test_ensembles_average_and_nest():
    zero, one = (lambda images: torch.zeros(1)), (lambda images: torch.ones(1))
    assert Ensemble([zero, one])(IMAGES).item() == 0.5
    assert Ensemble([zero, one], [1, 3])(IMAGES).item() == 0.75
    assert Ensemble([Ensemble([zero, one]), one])(IMAGES).item() == 0.75
    for predictors, weights in [([], None), ([zero], [1, 2]), ([zero, one], [1, -1]), ([zero], [0])]:
        with pytest.raises(ValueError, match="predictors need as many weights"):
            Ensemble(predictors, weights)
