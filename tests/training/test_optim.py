import pytest

from carvana.config import ModelConfig, OptimConfig
from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.encoder import encoder_parts
from carvana.training.optim import build_optimizer, rate_factor, set_rate


def test_rate_rises_linearly_and_falls_as_a_cosine():
    factors = [rate_factor(step / 100, 0.01, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert (factors[10], factors[55]) == (pytest.approx(1.0), pytest.approx(0.5))
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) <= 1
    assert 0 < factors[-1] < 0.001
    assert rate_factor(0.0, 1.0, 0.0) == 1.0
    assert [rate_factor(step / 7, 1 / 7, 1.0) for step in range(7)] == pytest.approx([n / 7 for n in range(1, 8)])


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_each_part_has_its_rate_and_norms_have_no_decay(encoder):
    model = build_model(ModelConfig(encoder=encoder, pretrained=False))
    config = OptimConfig(lr=0.01, encoder_lr_factor=0.5, layer_decay=0.9, weight_decay=0.05)
    optimizer = build_optimizer(model, config)
    set_rate(optimizer, 0.005)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    assert all(group_of[id(p)]["weight_decay"] == (0.05 if p.ndim > 1 else 0) for p in model.parameters())
    rates = [{group_of[id(p)]["lr"] for p in part.parameters()} for part in encoder_parts(model.network.encoder)]
    assert [rate for (rate,) in rates[::-1]] == pytest.approx([0.0025 * 0.9**depth for depth in range(len(rates))])
    assert len(rates) >= 5
    assert {group_of[id(p)]["lr"] for p in model.network.head.parameters()} == {0.005}


def test_layer_decay_is_refused_without_an_encoder():
    model = build_model(ModelConfig(architecture="vanilla_unet", base_width=4))
    build_optimizer(model, OptimConfig())
    with pytest.raises(InputError, match=r"optim\.layer_decay: this architecture has no encoder"):
        build_optimizer(model, OptimConfig(layer_decay=0.9))
