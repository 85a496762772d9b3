"""The faster convolutions compute what nn.Conv2d computes, with the same gradients; the swap changes nothing else."""

from copy import deepcopy
from unittest.mock import Mock

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from carvana.config import ModelConfig
from carvana.models import build_model, cpu
from carvana.models.blocks import DecoderBlock
from carvana.models.cpu import (
    DenseConv3x3,
    DepthwiseConv2d,
    DepthwiseConv2dSame,
    FourTapBlock,
    interleave,
    separate,
    speed_up_convolutions,
)
from carvana.prediction.fusion import fuse_norms

DEPTHWISE, DENSE = {"groups": 4, "bias": False}, {"bias": False}
FASTER = {
    nn.Conv2d(4, 4, 3, 2, 1, **DEPTHWISE): DepthwiseConv2d,
    nn.Conv2d(4, 8, 5, 1, 2, **DEPTHWISE): DepthwiseConv2d,
    Conv2dSame(4, 4, 3, 2, **DEPTHWISE): DepthwiseConv2dSame,
    nn.Conv2d(4, 6, 3, 1, 1, **DENSE): DenseConv3x3,
}
KEPT = [
    nn.Conv2d(4, 4, 3, 1, 1, **DEPTHWISE), nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Conv2d(4, 4, 3, 2, 1, 1, 2, False),
    nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(4, 6, 3, 2, 1, **DENSE), nn.Conv2d(4, 6, 3, 1, 0, **DENSE),
    nn.Conv2d(4, 6, 1, **DENSE), nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect", **DENSE), StdConv2d(4, 6, 3, 1, 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def avx2(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # whatever the processor is


def swapped(conv: nn.Module) -> nn.Module:
    conv = deepcopy(conv)
    speed_up_convolutions(conv)
    return conv


def test_only_slow_convolutions_are_swapped(monkeypatch):
    assert [type(swapped(conv)) for conv in FASTER] == list(FASTER.values())
    assert [type(swapped(conv)) for conv in KEPT] == [type(conv) for conv in KEPT]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert type(swapped(nn.Conv2d(4, 6, 3, 1, 1, **DENSE))) is nn.Conv2d


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (64, 96)])  # the last in several matrix products
@pytest.mark.parametrize("conv", FASTER, ids=str)
def test_gradients_are_those_of_float32(conv, size):
    """In bfloat16 but for the last rounding: all that enters is exact in bfloat16."""
    conv.weight.data = conv.weight.data.bfloat16().float()
    fast, inputs = swapped(conv), torch.randn(3, 4, *size).bfloat16().float()
    inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()
    dense, expected = isinstance(fast, DenseConv3x3), conv(inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=not dense):
        outputs, plain = fast(inputs), fast.eval()(inputs)
    assert torch.equal(outputs, plain)
    with torch.autocast("cpu", torch.bfloat16, enabled=dense):  # the other precision is left to PyTorch
        others = [plain, fast.train()(inputs)]
    if dense and size != (1, 1):
        others.append(fast(inputs.contiguous()))  # and so are other layouts
    assert outputs.grad_fn.name() == ("_GradientByProductsBackward" if dense else "_Float32BackwardBackward")
    assert outputs.grad_fn.name() not in [other.grad_fn.name() for other in others]
    weights = torch.randn(expected.shape).bfloat16().float()
    grads = torch.autograd.grad((outputs.float() * weights).sum(), [inputs, fast.weight])
    for grad, other in zip(grads, torch.autograd.grad((expected * weights).sum(), [inputs, conv.weight]), strict=True):
        atol = 1e-4 * other.abs().max().item()  # sums of many terms that cancel
        torch.testing.assert_close(grad, other, rtol=1e-4 if dense else 0.005, atol=atol)


def test_separating_undoes_interleaving():
    pixels = torch.randn(2, 3, 8, 10)
    parts = separate(pixels)
    assert parts.shape == (2, 12, 5, 6)
    assert torch.equal(interleave(parts), pixels)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("skips", [0, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_four_taps_compute_what_nine_do_behind_nearest_upsampling(size, skips, gates, capability, monkeypatch):
    gradient = Mock(wraps=cpu.weight_gradient)
    monkeypatch.setattr(cpu, "weight_gradient", gradient)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    block = DecoderBlock(4, skips, 6, ModelConfig(attention_gates=gates)).double()
    fast = swapped(block)
    assert type(fast) is FourTapBlock
    shapes = [(2, 4, *size)] + [(2, skips, 2 * size[0], 2 * size[1])] * (skips > 0)
    inputs = [torch.randn(shape, dtype=torch.double).to(memory_format=torch.channels_last) for shape in shapes]
    results = []
    for either in (block, fast):
        features = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = either(*features)
        names = [name for name, _ in either.named_parameters()]
        outputs.square().sum().backward()
        results.append([outputs, *(f.grad for f in features), *(either.get_parameter(name).grad for name in names)])
    products = 2 + (skips > 0)  # for coarse features, skips if any, and the second convolution
    assert gradient.call_count == (products if capability == "AVX2" else 0)
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(fast.eval()(*inputs), block.eval()(*inputs))


def test_four_taps_in_bfloat16_are_nine_but_for_rounding(monkeypatch):
    block, inputs = DecoderBlock(4, 3, 6, ModelConfig()), [torch.randn(2, 4, 5, 8), torch.randn(2, 3, 10, 16)]
    inputs, fast = [tensor.to(memory_format=torch.channels_last) for tensor in inputs], swapped(block)
    interleaving = Mock(wraps=interleave)
    monkeypatch.setattr(cpu, "interleave", interleaving)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = fast(*inputs)
    assert interleaving.call_args.args[0].dtype is torch.bfloat16
    torch.testing.assert_close(outputs.float(), block(*inputs), rtol=0, atol=0.05)


def test_other_upsampling_keeps_nine_taps():
    for upsampling in ("bilinear", "transposed"):
        assert type(swapped(DecoderBlock(4, 0, 6, ModelConfig(upsampling=upsampling)))) is DecoderBlock


def test_a_swapped_network_keeps_its_parameters_and_has_the_same_gradients_and_logits(monkeypatch):
    """Its decoder's tensors have the layout for which products are faster, and its norms can still be fused."""
    gradient, photos = Mock(wraps=cpu.weight_gradient), torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    monkeypatch.setattr(cpu, "weight_gradient", gradient)
    model = build_model(ModelConfig(pretrained=False, decoder_channels=(8,) * 5)).double()
    fast = deepcopy(model)
    facts = lambda: (list(fast.state_dict()), [id(p) for p in fast.parameters()], torch.get_rng_state().tolist())
    before = facts()
    speed_up_convolutions(fast)
    assert facts() == before
    assert set(FASTER.values()) <= set(map(type, fast.modules()))
    for network in (model, fast):
        network(photos).square().mean().backward()
    for parameter, expected in zip(fast.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert gradient.call_count == 14  # of five blocks, of which four have a skip
    with torch.inference_mode():
        assert fuse_norms(fast.eval(), photos) > 50
        torch.testing.assert_close(fast(photos), model.eval()(photos))
