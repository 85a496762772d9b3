import pytest

from carvana.config import ModelConfig, OptimConfig
from carvana.errors import InputError
from carvana.models import build_model
from carvana.optim import build_optimizer, encoder_parts, rate_factor, set_rate


def test_rate_rises_linearly_and_falls_as_a_cosine():
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001
    assert rate_factor(0, 1, 0.0) == 1.0


def test_groups_encoder_slower_and_norms_without_decay(tiny):
    model = build_model(tiny().model)
    config = OptimConfig(lr=0.01, encoder_lr_factor=0.1, weight_decay=0.05)
    optimizer = build_optimizer(model, config)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(0.001 if name.startswith("network.encoder.") else 0.01)
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize(("scale", "lr"), [("none", 0.01), ("sqrt", 0.02), ("linear", 0.04)])
def test_rate_scales_with_processes_as_told(tiny, scale, lr):
    optimizer = build_optimizer(build_model(tiny().model), OptimConfig(lr=0.01, scale_lr=scale), num_processes=4)
    set_rate(optimizer, 0.005)
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(lr / 2)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_layer_decay_slows_the_encoder_towards_the_photo(encoder):
    model = build_model(ModelConfig(encoder=encoder, pretrained=False))
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, encoder_lr_factor=0.5, layer_decay=0.9))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    rates = [{rate[id(p)] for p in part.parameters()} for part in encoder_parts(model.network.encoder)]
    depth = len(rates)
    assert depth >= 5
    assert [max(some) for some in rates] == pytest.approx([0.005 * 0.9 ** (depth - 1 - i) for i in range(depth)])
    assert all(len(some) == 1 for some in rates)
    assert {rate[id(p)] for p in model.network.head.parameters()} == {0.01}


def test_a_frozen_encoder_has_no_rate(tiny):
    model = build_model(tiny().model)
    optimizer = build_optimizer(model, OptimConfig(lr=0.01))
    in_encoder = {id(p) for p in model.network.encoder.parameters()}
    set_rate(optimizer, 0.01, frozen_encoder=True)
    for group in optimizer.param_groups:
        assert group["lr"] == (0 if id(group["params"][0]) in in_encoder else 0.01)


def test_settings_of_an_encoder_are_refused_without_one():
    model = build_model(ModelConfig(architecture="vanilla_unet", base_width=4))
    with pytest.raises(InputError, match=r"optim\.frozen_encoder_epochs, .*: this architecture has no encoder"):
        build_optimizer(model, OptimConfig(frozen_encoder_epochs=1))
