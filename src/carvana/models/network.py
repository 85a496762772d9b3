"""The wrapper that makes a network a model, and the bases of the networks: checkpointing, encoder and decoder."""

from typing import Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from carvana.config import ModelConfig
from carvana.data.geometry import pad_to_multiple, unpad
from carvana.errors import InputError
from carvana.models.encoder import create_encoder, encoder_parts


class Segmenter(nn.Module):
    """Normalizes and pads uint8 images for `network`, and crops its logits.

    `network` takes normalized images whose sides are multiples of `network.multiple`. Its `mean` and `std` are of
    colours in [0, 1], `border` is the number of mirrored pixels on each side. Its logits may have several channels.
    """

    memory_format = torch.channels_last

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(network.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(network.std).view(1, 3, 1, 1))

    def lay_out(self, device: torch.device, memory_format: torch.memory_format) -> "Segmenter":
        """Moves it to the device, its weights in that format; images are brought to it."""
        self.memory_format = memory_format
        return self.to(device, memory_format=memory_format)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images, padding = pad_to_multiple(images, self.network.multiple, self.network.border)
        images = (images.to(self.mean.dtype) - self.mean) / self.std  # uint8 crosses the bus: a quarter of the bytes
        images = images.to(next(self.network.parameters()).dtype)  # prediction may have cast the weights
        return unpad(self.network(images.contiguous(memory_format=self.memory_format)), padding)


class Network(nn.Module):
    """Can keep only the inputs of its blocks while it trains, and compute the others again (Chen et al., 2016).

    timm's encoders have a switch of their own. BatchNorm would count a batch each time it is computed: its running
    statistics therefore stand still during backward.
    """

    def __init__(self, grad_checkpointing: bool):
        super().__init__()
        self.grad_checkpointing = grad_checkpointing
        self.momenta: dict[nn.Module, float] = {}  # of each BatchNorm
        if grad_checkpointing:
            self.register_forward_pre_hook(_before_forward)
            self.register_forward_hook(_after_forward)

    def compute(self, block: nn.Module, *inputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        again = self.grad_checkpointing and self.training
        return checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)


def _before_forward(network: Network, _inputs: tuple) -> None:
    """Gives BatchNorms their momentum back; encoders checkpoint in training only."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = network.momenta.setdefault(module, module.momentum)
    switch_checkpointing(network, network.training)


def switch_checkpointing(network: nn.Module, on: bool) -> None:
    """By timm's own switches. Some encoders raise an AssertionError if it is to be on."""
    for module in network.modules():
        if hasattr(module, "set_grad_checkpointing"):
            module.set_grad_checkpointing(on)


def _after_forward(network: Network, _inputs: tuple, logits: torch.Tensor) -> None:
    """Stops the BatchNorms' statistics as soon as backward begins: when the logits get their gradient."""

    def hold_statistics(_gradient: torch.Tensor) -> None:
        for norm in network.momenta:
            norm.momentum = 0.0

    if logits.requires_grad:
        logits.register_hook(hold_statistics)


def _allow_checkpointing(encoder: nn.Module, name: str) -> None:
    try:
        switch_checkpointing(encoder, True)
    except AssertionError:  # HRNet's
        raise InputError(f"model.grad_checkpointing: {name} cannot do it; set it to false") from None
    for child in encoder.children():
        if getattr(child, "inplace", False):
            child.inplace = False  # timm before 1.0.31 checkpoints it, which must not overwrite its input


def _freeze(encoder: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """Stops the gradients of what the configuration freezes; gives the parts, whose statistics stand still as well."""
    parts, count = encoder_parts(encoder), config.frozen_parts
    for name in ("frozen_parts", "frozen_depthwise"):
        if (value := getattr(config, name)) and not config.pretrained:
            raise InputError(f"model.{name}={value}: without model.pretrained they would stay random")
    if count >= len(parts):
        raise InputError(f"model.frozen_parts={count}: {config.encoder} has {len(parts)}, the last must be trained")
    if config.frozen_depthwise:
        depthwise = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
        if not depthwise:
            raise InputError(f"model.frozen_depthwise: {config.encoder} has no such convolution; set it to false")
        for conv in depthwise:
            conv.requires_grad_(False)
    return [part.requires_grad_(False) for part in parts[:count]]


class EncoderDecoder(Network):
    """An encoder of levels at strides s1 < ... < sn (from timm's `feature_info`); subclasses add decoder and head.

    The decoder's blocks go from sn to `decoder_stride`; `strides` lists the stride that each of them gives. A block has
    a skip if the encoder has a level of its stride: encoders may start at stride 4 (ConvNeXt) or 1 (VGG). The head goes
    on to stride 1: at 512x768, a `decoder_stride` of 2 still places an edge to less than a pixel of the photo.
    """

    options = frozenset({
        "encoder", "pretrained", "weights", "frozen_parts", "frozen_depthwise", "decoder_stride",
        "logit_upsampling", "upsampling", "stem_channels", "dropout", "deep_supervision", "grad_checkpointing",
    })  # fmt: skip
    border = 0

    def __init__(self, config: ModelConfig, pretrained: bool):
        super().__init__(config.grad_checkpointing)
        self.encoder = encoder = create_encoder(config.encoder, config.pretrained and pretrained, config.weights)
        self.mean, self.std = encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]
        if config.grad_checkpointing:
            _allow_checkpointing(encoder, config.encoder)
        self.frozen = _freeze(encoder, config)
        levels = encoder.feature_info
        self.channels = dict(zip(levels.reduction(), levels.channels(), strict=True))  # of each stride, finest first
        self.multiple = max(self.channels)
        halvings = [self.multiple >> level for level in range(1, self.multiple.bit_length())]  # 16, 8, 4, 2, 1
        self.strides = [stride for stride in halvings if stride >= config.decoder_stride]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def decoder_widths(self, config: ModelConfig) -> tuple[int, ...]:
        """One for each of `strides`. Raises InputError if too few are given."""
        given, needed = config.decoder_channels, len(self.strides)
        if len(given) < needed:
            raise InputError(f"model.decoder_channels: {needed} levels needed, {len(given)} given")
        return given[:needed]
