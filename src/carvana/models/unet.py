"""U-Net with any timm encoder (Ronneberger, Fischer, Brox, 2015; pretrained encoder as in TernausNet, 2018)."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import DecoderBlock, Head
from carvana.models.network import EncoderDecoder


class UNet(EncoderDecoder):
    """A decoder block for each halving of the stride; it joins the encoder's level of that stride.

    With `encoder: vgg11_bn` this is TernausNet: six levels, the finest at full size.
    """

    options = EncoderDecoder.options | {"decoder_channels", "attention_gates", "scse"}
    block: type[nn.Module] = DecoderBlock

    def __init__(self, config: ModelConfig, pretrained: bool):
        super().__init__(config, pretrained)
        widths = self.decoder_widths(config)
        in_widths = (self.channels[self.multiple], *widths)
        self.decoder = nn.ModuleList(
            self.block(in_width, self.channels.get(stride, 0), width, config)
            for stride, in_width, width in zip(self.strides, in_widths, widths, strict=False)
        )
        self.head = Head(widths, self.strides, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = dict(zip(self.channels, self.encoder(images), strict=True))  # (N, channels, H / stride, W / stride)
        features, decoded = levels[self.multiple], []
        for block, stride in zip(self.decoder, self.strides, strict=True):
            skips = [levels[stride]] if stride in levels else []
            features = self.compute(block, features, *skips)
            decoded.append(features)  # (N, width, H / stride, W / stride), coarsest first
        return self.compute(self.head, images, decoded)
