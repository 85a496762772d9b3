"""LinkNet with any timm encoder (Chaurasia, Culurciello: LinkNet, 2017); on resnet34 the winners' LinkNet34."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import ConvNormAct
from carvana.models.encoder_decoder import EncoderDecoder
from carvana.models.head import Head

LAST_WIDTH = 32  # the paper's, where the decoder goes beyond the encoder's finest level


class LinkBlock(nn.Sequential):
    """Doubles the size at a quarter of the channels."""

    def __init__(self, in_channels: int, out_channels: int, upsampling: str):
        width = max(in_channels // 4, 1)
        super().__init__(
            ConvNormAct(in_channels, width, kernel_size=1),
            Double(width, upsampling),
            ConvNormAct(width, out_channels, kernel_size=1),
        )


class Double(nn.Sequential):
    """Doubles the size: the paper's transposed 3x3 convolution, or interpolation and a 3x3 convolution."""

    def __init__(self, width: int, upsampling: str):
        if upsampling == "transposed":
            conv = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1, bias=False)
            super().__init__(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        else:
            super().__init__(nn.Upsample(scale_factor=2, mode=upsampling), ConvNormAct(width, width))


class LinkNet(EncoderDecoder):
    """Skips are added, not concatenated: each block gives the channels of the encoder's level that it meets."""

    def __init__(self, encoder: nn.Module, config: ModelConfig):
        super().__init__(encoder, config)
        widths = [self.channels.get(stride, LAST_WIDTH) for stride in self.strides]
        in_widths = (self.channels[self.coarsest], *widths)
        self.decoder = nn.ModuleList(
            LinkBlock(in_width, width, config.upsampling or "transposed")
            for in_width, width in zip(in_widths, widths, strict=False)
        )
        self.head = Head(widths, self.strides, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = self.encoder(images)  # (N, channels, H / stride, W / stride), finest first
        features, decoded = levels[-1], []
        for block, level in zip(self.decoder, self.skip_levels, strict=True):
            features = self.run(block, features)
            features = features if level is None else features + levels[level]
            decoded.append(features)  # (N, width, H / stride, W / stride), coarsest first
        return self.run(self.head, images, decoded)
