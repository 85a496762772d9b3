"""What all networks on a timm encoder share."""

from typing import Self

from torch import nn

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models.checkpointing import CheckpointedNetwork
from carvana.models.depthwise import replace_slow_depthwise
from carvana.models.encoder import create_encoder, encoder_parts


class EncoderDecoder(CheckpointedNetwork):
    """An encoder of levels at strides s1 < ... < sn (from timm's `feature_info`); subclasses add decoder and head.

    The decoder's blocks go from sn to `decoder_stride` and give `strides`, with a skip wherever the encoder has a
    level of that stride: encoders that start at stride 4 (ConvNeXt) or 1 (VGG) need no special case. Where the
    decoder stops above stride 1, the head does the rest: at 512x768 a stride of 2 still places an edge below a
    photo pixel.
    """

    options = frozenset({
        "encoder", "pretrained", "weights", "frozen_parts", "decoder_stride", "logit_upsampling", "upsampling",
        "stem_channels", "dropout", "deep_supervision", "grad_checkpointing",
    })  # fmt: skip
    border = 0

    def __init__(self, encoder: nn.Module, config: ModelConfig):
        super().__init__(config.grad_checkpointing)
        self.encoder = encoder
        self.mean, self.std = encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]
        self.multiple = encoder.multiple
        if config.grad_checkpointing:
            for child in encoder.children():
                if getattr(child, "inplace", False):
                    child.inplace = False  # timm before 1.0.31 checkpoints it, which must not overwrite its input
        self.frozen = freeze_parts(encoder, config)
        info = encoder.feature_info
        self.channels = dict(zip(info.reduction(), info.channels(), strict=True))  # of each stride, finest first
        self.coarsest = max(self.channels)
        halvings = [self.coarsest >> level for level in range(1, self.coarsest.bit_length())]  # 16, 8, 4, 2, 1
        self.strides = [stride for stride in halvings if stride >= config.decoder_stride]
        levels = list(self.channels)
        self.skip_levels = [levels.index(stride) if stride in levels else None for stride in self.strides]

    @classmethod
    def from_config(cls, config: ModelConfig, pretrained: bool) -> Self:
        encoder = create_encoder(config.encoder, config.pretrained and pretrained, config.weights)
        replace_slow_depthwise(encoder)
        return cls(encoder, config)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def decoder_widths(self, config: ModelConfig) -> tuple[int, ...]:
        """`decoder_channels`, one for each of `strides`. Raises InputError if there are too few."""
        given, needed = config.decoder_channels, len(self.strides)
        if len(given) < needed:
            raise InputError(f"model.decoder_channels: {needed} levels needed, {len(given)} given")
        return given[:needed]


def freeze_parts(encoder: nn.Module, config: ModelConfig) -> tuple[nn.Module, ...]:
    """The first parts of the encoder, which need no gradient any more: the costliest ones, as they see most pixels.

    Raises InputError if nothing would be left to train, or if they would stay random.
    """
    count, parts = config.frozen_parts, encoder_parts(encoder)
    if count and not config.pretrained:
        raise InputError(f"model.frozen_parts={count}: without model.pretrained they would stay random")
    if count >= len(parts):
        raise InputError(f"model.frozen_parts={count}: {config.encoder} has {len(parts)}, the last one must be trained")
    for part in parts[:count]:
        part.requires_grad_(False)
    return tuple(parts[:count])
