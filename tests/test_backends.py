"""Backends compute what PyTorch does in float32; BatchNorm is fused wherever a network has it."""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from carvana.backends import prepare_model
from carvana.config import ModelConfig
from carvana.device import Device
from carvana.errors import InputError
from carvana.models import Segmenter, build_model
from carvana.models.fusion import fuse_norms

FLOAT32, BF16 = Device(torch.device("cpu")), Device(torch.device("cpu"), "bf16")
SETTINGS = {
    "unet": {"encoder": "test_efficientnet"},
    "unetplusplus": {"architecture": "unetplusplus", "encoder": "test_resnet"},
    "linknet": {"architecture": "linknet", "encoder": "test_resnet"},
    "convnext": {"encoder": "test_convnext"},
    "vanilla_unet": {"architecture": "vanilla_unet", "base_width": 8},
    "lite0": {"encoder": "tf_efficientnet_lite0", "decoder_stride": 2, "decoder_channels": [16, 16, 16, 16]},
}
MASK_DICE = {"no": 0.999, "bf16": 0.95}  # of an untrained network, cut at the median logit: each pixel is in doubt


def trained(name: str) -> Segmenter:
    """Random weights, and BatchNorm statistics and scales that are not those of the start."""
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate({"pretrained": False} | SETTINGS[name]), pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    model.train()
    for _ in range(4):  # statistics of these weights
        model(photos(4))
    return model.eval()


def photos(number: int, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    smooth = torch.rand(number, 3, 8, 12, generator=torch.Generator().manual_seed(number))
    return (255 * nn.functional.interpolate(smooth, size, mode="bilinear")).to(torch.uint8)


def mask_dice(logits: torch.Tensor, expected: torch.Tensor) -> float:
    one, other = logits > expected.median(), expected > expected.median()
    return (2 * (one & other).sum() / (one.sum() + other.sum())).item()


@pytest.mark.parametrize("name", SETTINGS)
def test_fused_networks_give_the_same_logits(name):
    model = trained(name)
    with torch.inference_mode():
        expected = model(photos(2, (70, 101)))
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert fuse_norms(model, photos(2)) == norms
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(model(photos(2, (70, 101))), expected, rtol=1e-3, atol=1e-3)


class SharedConv(nn.Module):
    """Its convolution's output is used beside the BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)
        nn.init.constant_(self.norm.bias, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.conv(images.float())
        return seen + self.norm(seen)


def test_a_network_that_cannot_be_fused_is_refused():
    with pytest.raises(RuntimeError, match="cannot be fused"):
        fuse_norms(SharedConv().eval(), photos(1))


def masks_agree(backend: str, device: Device) -> bool:
    """Whether a backend's masks of batches of three sizes are those of the model in float32."""
    model = trained("unet")
    with torch.inference_mode():
        expected = [model(some) for some in (photos(3), photos(2), photos(2, (96, 64)))]
        prepared = prepare_model(model, device, backend)
        found = [prepared(some) for some in (photos(3), photos(2), photos(2, (96, 64)))]
    assert [(logits.dtype, logits.shape) for logits in found] == [(torch.float32, logits.shape) for logits in expected]
    dice = [mask_dice(logits, right) for logits, right in zip(found, expected, strict=True)]
    return min(dice) > MASK_DICE[device.precision]


@pytest.mark.parametrize("backend", ["torch", "compile"])
@pytest.mark.parametrize("device", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_backends_agree_with_float32(backend, device):
    assert masks_agree(backend, device)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_agrees_with_float32():
    """In a process of its own, as users have it: on AMX hardware later signals have crashed a process that went on."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        assert other.submit(masks_agree, "openvino", FLOAT32).result()
        assert other.submit(masks_agree, "openvino", BF16).result()


def test_a_model_may_be_prepared_twice():
    model = trained("unet")
    with torch.inference_mode():
        once = prepare_model(model, BF16)(photos(2))
        assert torch.equal(prepare_model(model, BF16)(photos(2)), once)


def test_an_unknown_backend():
    with pytest.raises(InputError, match="choose from torch, compile, openvino"):
        prepare_model(trained("unet"), FLOAT32, "tensorrt")
