import pytest
import torch

from carvana.config import ModelConfig, OptimConfig
from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.encoder import encoder_parts
from carvana.training.muon import Muon, orthogonalize
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


@pytest.mark.parametrize("shape", [(128, 900), (40, 24), (16, 16)])
def test_orthogonal_matrices_have_singular_values_about_one_and_the_same_directions(shape):
    torch.manual_seed(0)
    u, values, v = torch.linalg.svd(torch.randn(shape).double(), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, len(values)).double()) @ v
    result = orthogonalize(matrix.float()).double()
    inner = u.T @ result @ v.T
    assert torch.linalg.svdvals(result).sub(0.9).abs().max() < 0.32  # what five steps of these coefficients reach
    assert (inner - torch.diag(inner.diag())).abs().max() < 1e-3


def test_muon_moves_convolutions_and_leaves_all_else_to_adamw():
    """By an update whose root mean square is about that of AdamW's, whatever the size of the gradient."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 16, 3, groups=16), torch.nn.Conv2d(16, 1, 1)
    )
    before, (dense, *others) = [p.detach().clone() for p in model.parameters()], model.parameters()
    muon = Muon(model.parameters(), lr=0.1, weight_decay=0.0)
    adamw = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in others], lr=0.1, weight_decay=0.0)
    grads = [torch.randn_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = 1e-6 * grad if parameter is dense else grad.clone()
    for parameter, grad in zip(adamw.param_groups[0]["params"], grads[1:], strict=True):
        parameter.grad = grad.clone()
    muon.step()
    adamw.step()
    assert all(map(torch.equal, others, adamw.param_groups[0]["params"]))
    moved = (dense.detach() - before[0]) / 0.1
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
    assert "exp_avg" not in muon.state[dense]
    muon.load_state_dict(muon.state_dict())
    assert moved.flatten().dot(grads[0].flatten()) < 0


def test_muon_leaves_the_encoder_to_adamw():
    model = build_model(ModelConfig(encoder="test_efficientnet", pretrained=False))
    optimizer = build_optimizer(model, OptimConfig(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    by_muon = {name for name, p in model.named_parameters() if "momentum" in optimizer.state[p]}
    assert by_muon == {
        name for name, p in model.named_parameters() if name.startswith("network.decoder.") and p.ndim == 4
    }


def test_muon_decays_weights_and_skips_those_without_gradient():
    first, second = (torch.ones(4, 4, requires_grad=True) for _ in range(2))
    first.grad = torch.zeros(4, 4)
    Muon([first, second], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(first, torch.full((4, 4), 0.95))
    assert torch.equal(second, torch.ones(4, 4))
