"""U-Net with any timm encoder (Ronneberger, Fischer, Brox, 2015; pretrained encoder as in TernausNet, 2018)."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import DecoderBlock
from carvana.models.encoder_decoder import EncoderDecoder
from carvana.models.head import Head


class UNet(EncoderDecoder):
    """A decoder block for each halving of the stride, joined by the encoder's level of that stride.

    With `encoder: vgg11_bn` it is TernausNet: six levels, the finest at full size.
    """

    options = EncoderDecoder.options | {"decoder_channels", "attention_gates", "scse"}

    def __init__(self, encoder: nn.Module, config: ModelConfig):
        super().__init__(encoder, config)
        widths = self.decoder_widths(config)
        in_widths = (self.channels[self.coarsest], *widths)
        self.decoder = nn.ModuleList(
            DecoderBlock(in_width, self.channels.get(stride, 0), width, config)
            for stride, in_width, width in zip(self.strides, in_widths, widths, strict=False)
        )
        self.head = Head(widths, self.strides, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = self.encoder(images)  # (N, channels, H / stride, W / stride), finest first
        features, decoded = levels[-1], []
        for block, level in zip(self.decoder, self.skip_levels, strict=True):
            skips = [] if level is None else [levels[level]]
            features = self.run(block, features, *skips)
            decoded.append(features)  # (N, width, H / stride, W / stride), coarsest first
        return self.run(self.head, images, decoded)
