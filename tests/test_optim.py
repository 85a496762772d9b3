import pytest

from carvana.config import OptimConfig
from carvana.models import build_model
from carvana.optim import build_optimizer, rate_factor, set_rate


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
    set_rate(optimizer, 0.5)
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(lr / 2)
