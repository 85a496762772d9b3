"""Backends compute what PyTorch does in float32; BatchNorm is fused wherever a network has it."""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from varied_runs import CPU

from carvana.config import ModelConfig
from carvana.device import Device
from carvana.errors import InputError
from carvana.evaluation.metrics import dice
from carvana.models import Segmenter, build_model
from carvana.prediction.backends import prepare_model
from carvana.prediction.fusion import fuse_norms

BF16, SIZES = Device(torch.device("cpu"), "bf16"), [(3, 64, 96), (2, 64, 96), (2, 96, 64)]
MASK_DICE = {CPU: 0.999, BF16: 0.95}  # of an untrained network, cut at the median logit: each pixel is in doubt


def trained(**settings) -> Segmenter:
    """Random weights, and BatchNorm statistics and scales that are not those of the start."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(pretrained=False, **settings or {"encoder": "test_efficientnet"}), pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for _ in range(4):  # statistics of these weights
        model.train()(photos(4))
    return model.eval()


def photos(number: int, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    smooth = torch.rand(number, 3, 8, 12, generator=torch.Generator().manual_seed(number))
    return (255 * nn.functional.interpolate(smooth, size, mode="bilinear")).to(torch.uint8)


@pytest.mark.parametrize("settings", [
    {"encoder": "test_efficientnet"}, {"encoder": "test_convnext"}, {"architecture": "vanilla_unet", "base_width": 8},
    {"architecture": "unetplusplus", "encoder": "test_resnet"}, {"architecture": "linknet", "encoder": "test_resnet"},
])  # fmt: skip
@torch.inference_mode()
def test_fused_networks_give_the_same_logits(settings):
    model = trained(**settings)
    expected, norms = model(photos(2, (70, 101))), sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert fuse_norms(model, photos(2)) == norms
    torch.testing.assert_close(model(photos(2, (70, 101))), expected, rtol=1e-3, atol=1e-3)


class SharedConv(nn.Sequential):
    """Its convolution's output is used beside the BatchNorm."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self[0](images.float())
        return features + self[1](features)


def test_a_network_that_cannot_be_fused_is_refused():
    with pytest.raises(RuntimeError, match="cannot be fused"):
        fuse_norms(SharedConv(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1, eps=1)).eval(), photos(1))


@torch.inference_mode()
def assert_masks_agree(model: Segmenter, backend: str, device: Device, sizes: list[tuple] = SIZES) -> None:
    """A backend's masks of batches of these sizes are those of the model in float32; it may be prepared twice."""
    batches = [photos(number, size) for number, *size in sizes]
    expected = [model(images) for images in batches]
    prepare_model(model, device, backend)
    prepared = prepare_model(model, device, backend)
    for images, truth in zip(batches, expected, strict=True):
        logits, level = prepared(images), truth.median()
        assert (logits.dtype, logits.shape) == (torch.float32, truth.shape)
        assert dice(logits > level, truth > level) > MASK_DICE[device]


@pytest.mark.parametrize(("backend", "device"), [("torch", CPU), ("torch", BF16), ("compile", BF16)])
def test_masks_agree_with_float32(backend, device, monkeypatch):
    """The compiler, which would take a minute, only traces the network."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))
    assert_masks_agree(trained(), backend, device, SIZES[:1] if backend == "compile" else SIZES)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_agrees_with_float32():
    """In a process of its own, as users have it: on AMX hardware later signals have crashed a process that went on."""
    with ProcessPoolExecutor(1, get_context("fork"), torch.set_num_threads, (1,)) as process:  # no thread is forked
        process.submit(assert_masks_agree, trained(), "openvino", CPU, SIZES[:2]).result()
        process.submit(assert_masks_agree, trained(), "openvino", BF16, SIZES[2:]).result()


@pytest.mark.parametrize(("backend", "device", "words"), [
    ("tensorrt", "cpu", "tensorrt: choose from torch, compile, openvino"),
    ("openvino", "meta", "openvino: computes on the CPU, not on meta"),
    ("openvino", "cpu", "openvino: pip install openvino"),
])  # fmt: skip
def test_backends_that_cannot_be_had(backend, device, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=f"--backend {words}"):
        prepare_model(trained(), Device(torch.device(device)), backend)
