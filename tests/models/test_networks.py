from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models import MODELS, Segmenter, build_model
from carvana.models.blocks import SCSE, AttentionGate, LogitConv
from carvana.models.encoder import encoder_parts
from carvana.models.linknet import LinkBlock

IMAGES = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
FAMILIES = ("tf_efficientnet_lite0", "mobilenetv4_conv_small", "regnety_002", "test_nfnet", "test_mambaout")
SWINS = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256")
PYRAMIDS = ("unet", "unetplusplus", "linknet")
OPTIONS = [  # and the architectures that have them
    *(({"encoder": name}, ["unet"]) for name in FAMILIES + SWINS),
    *(({"upsampling": how}, MODELS) for how in ("nearest", "bilinear", "transposed")),
    ({"border": 0}, ["vanilla_unet"]),
    ({"encoder": "test_efficientnet", "decoder_stride": 2, "grad_checkpointing": True}, PYRAMIDS),
    ({"encoder": "test_convnext"}, PYRAMIDS),  # four levels, from stride 4
    ({"encoder": "test_convnext", "decoder_stride": 4, "logit_upsampling": "pixel_shuffle"}, PYRAMIDS),
    ({"deep_supervision": True, "decoder_stride": 2, "stem_channels": 4, "dropout": 0.5}, PYRAMIDS),
    ({"encoder": "test_convnext", "attention_gates": True, "scse": True}, ("unet", "unetplusplus")),
]
VARIANTS = [{"architecture": name} | settings for settings, names in OPTIONS for name in names]
WRONG = [
    ({"architecture": "unett"}, "model.architecture=unett: choose from unet, vanilla_unet, unetplusplus, linknet"),
    ({"encoder": "resnet34x"}, "timm has no such model; similar: resnet34"),
    ({"encoder": "test_vit"}, r"=test_vit: .*its strides 16, 16, 16 do not double\); take .* such as resnet34"),
    ({"encoder": "pit_ti_224"}, "pit_ti_224: cannot be used .*; take .* as resnet34"),  # position of each patch
    ({"encoder": "legacy_xception"}, "cannot be .*the levels of 32x64 pixels are 13x29"),  # convolutions do not pad
    ({"decoder_channels": (8, 8)}, "model.decoder_channels: 5 levels needed, 2 given"),
    ({"frozen_parts": 1, "pretrained": False}, r"frozen_parts=1: without model\.pretrained they would stay random"),
    ({"frozen_depthwise": True, "pretrained": False}, r"frozen_depthwise=True: without model\.pretrained"),
    ({"frozen_depthwise": True, "encoder": "test_resnet"}, "test_resnet has no such convolution"),
    ({"frozen_parts": 99, "encoder": "test_resnet"}, r"=99: test_resnet has \d+, the last must be trained"),
    ({"base_width": 32}, "model.base_width=32: unet does not use it, only vanilla_unet: leave it at 64"),
]
if timm.is_model("test_maxvit"):  # newer than timm 1.0.26, which takes squares only with the other one
    WRONG.append(({"encoder": "test_maxvit"}, "cannot be .* divisible by window"))  # sides of 160
    VARIANTS.append({"encoder": "efficientvit_m0"})  # three levels, from stride 16


def small(architecture: str = "unet", **settings) -> Segmenter:
    """A model with a tiny encoder and a thin decoder, in evaluation mode."""
    defaults = {"encoder": "test_resnet", "pretrained": False, "base_width": 4, "decoder_channels": (8,) * 6}
    used = {key: value for key, value in defaults.items() if key in MODELS[architecture].options}
    return build_model(ModelConfig(architecture=architecture, **used | settings), pretrained=False).eval()


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_any_size_and_finite_gradients_of_every_parameter_in_half_precision(settings):
    model = small(**settings)
    with torch.no_grad():
        for height, width in [(33, 65), (7, 90), (1, 1)]:
            assert model(IMAGES[..., :height, :width]).shape == (2, 1, height, width)
    # Not smaller: where a level is one pixel wide, oneDNN's AMX convolutions (torch 2.15) give NaN now and then.
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(IMAGES)
    logits.float().square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_options_leave_the_default_network_as_it_was():
    """Checkpoints from before the options can be loaded."""
    state = small(decoder_channels=(8,) * 5).network.state_dict()
    names = {name.rpartition(".")[0] for name in state if not name.startswith("encoder.")}
    blocks = {f"decoder.{block}.{conv}.{part}" for block in range(5) for conv in ("conv1", "conv2") for part in (0, 1)}
    assert names == blocks | {"head"}


def test_networks_are_the_papers():
    plain = small("vanilla_unet", base_width=64, upsampling="transposed")
    assert sum(parameter.numel() for parameter in plain.parameters()) == 31_037_633  # with BatchNorm, one class
    assert small(encoder="vgg11_bn").network.decoder[-1].conv1[0].in_channels == 8 + 64  # a skip at full size
    columns = small("unetplusplus").network.columns  # a triangle of dense skips
    assert [column[0].conv1[0].in_channels for column in columns] == [32 + 32, 8 + 32 + 8, 8 + 32 + 16, 8 + 32 + 24]


def test_photos_are_normalized_as_the_encoder_wants():
    model, batch, calls = small(), IMAGES[..., :32, :32], []
    model.network.register_forward_pre_hook(lambda _, inputs: calls.extend(inputs))
    model(batch)
    mean, std = (torch.tensor(model.network.encoder.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(calls[0], (batch / 255 - mean) / std)


def test_linknet_adds_skips():
    block, features, skip = LinkBlock(8, 4, 4, ModelConfig()).eval(), torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6, 10)
    assert torch.equal(block(features, skip), block(features) + skip)


def test_attention_weights_lie_between_0_and_1():
    weights = AttentionGate(6, 4)(torch.ones(2, 6, 8, 12), torch.randn(2, 4, 4, 6))
    assert 0 < weights.min() < weights.max() < 1
    scse, features = SCSE(4), torch.randn(2, 4, 3, 5)
    for parameter in scse.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(scse(features), features)  # half from the channel and half from the place


def test_pixel_shuffle_starts_equal_within_cells_and_learns_each_pixel():
    conv = LogitConv(5, 4, "pixel_shuffle")
    cells = conv(torch.randn(2, 5, 3, 6)).unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.equal(cells, cells[..., :1, :1].expand_as(cells))
    nn.init.constant_(conv.bias[5:6], 100.0)
    assert conv(torch.zeros(1, 5, 1, 1))[0, 0].argmax() == 5


@pytest.mark.parametrize("architecture", PYRAMIDS)
def test_deep_supervision_gives_coarser_levels_in_training(architecture):
    model = small(architecture, deep_supervision=True, decoder_stride=2)
    for number, side in enumerate(model.network.head.sides):  # strides 16, 8, 4; all 2 in U-Net++
        nn.init.zeros_(side.weight)
        nn.init.constant_(side.bias, number)
    logits = model.train()(IMAGES)
    assert logits.shape == (2, 4, 65, 97)
    assert [logits[:, channel].unique().tolist() for channel in (1, 2, 3)] == [[2], [1], [0]]  # finest first


@pytest.mark.parametrize("architecture", MODELS)
def test_checkpointing_changes_nothing_but_the_memory(architecture):
    """Same gradients, same statistics (each batch counts once), same evaluation; less is kept for backward."""
    models, batch = [small(architecture, grad_checkpointing=on) for on in (False, True)], IMAGES[..., :64, :64]
    models[1].load_state_dict(models[0].state_dict())
    for _ in range(2):
        plain, checkpointed = (train_step(model, batch) for model in models)
        assert checkpointed < 0.6 * plain
    for plain, checkpointed in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(plain.grad, checkpointed.grad)
    for plain, checkpointed in zip(*(model.buffers() for model in models), strict=True):
        assert torch.equal(plain, checkpointed) or plain.dtype == torch.int64  # number of batches
    assert torch.equal(*(model.eval()(batch) for model in models))


def test_an_encoder_that_cannot_be_checkpointed_is_named():
    with pytest.raises(InputError, match=r"^model\.grad_checkpointing: hrnet_w18_small cannot do it; set it to false$"):
        build_model(ModelConfig(encoder="hrnet_w18_small", pretrained=False, grad_checkpointing=True))


def train_step(model: nn.Module, batch: torch.Tensor) -> int:
    """Forward and backward; the number of values that were kept in between."""
    kept = {}
    keep = lambda tensor: kept.update({tensor.data_ptr(): tensor.numel()}) or tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(batch).square().mean().backward()
    return sum(kept.values())


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext"])
def test_frozen_parts_keep_weights_and_statistics(encoder):
    model = small(encoder=encoder, pretrained=True, frozen_parts=2).train()
    parts = encoder_parts(model.network.encoder)
    before = deepcopy(parts)
    model(IMAGES).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1).step()
    states = [[part.state_dict().values() for part in stage] for stage in (before, parts)]
    same = [all(map(torch.equal, old, new)) for old, new in zip(*states, strict=True)]
    assert same == [True, True, *[False] * (len(parts) - 2)]


def test_frozen_depthwise_convolutions_keep_their_weights():
    model = small(encoder="test_efficientnet", pretrained=True, frozen_depthwise=True).train()
    model(IMAGES).square().mean().backward()
    convs = [conv for conv in model.network.encoder.modules() if isinstance(conv, nn.Conv2d)]
    assert {conv.groups > 1 for conv in convs} == {True, False}
    assert [conv.weight.grad is None for conv in convs] == [conv.groups > 1 for conv in convs]


def test_wrong_settings_end_in_one_line_with_a_way_out():
    for settings, message in WRONG:
        with pytest.raises(InputError, match=rf"{message}[^\n]*\Z"):
            build_model(ModelConfig(**settings), pretrained=False)
