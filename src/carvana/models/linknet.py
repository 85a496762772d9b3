"""LinkNet with any timm encoder (Chaurasia, Culurciello: LinkNet, 2017); on resnet34 the winners' LinkNet34."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import ConvNormAct
from carvana.models.network import EncoderDecoder
from carvana.models.unet import UNet

LAST_WIDTH = 32  # the paper's, where the decoder goes beyond the encoder's finest level


class LinkBlock(nn.Sequential):
    """Doubles the size at a quarter of the channels, then adds the skip of that size, if there is one."""

    def __init__(self, in_channels: int, _skip_channels: int, out_channels: int, config: ModelConfig):
        width, how = max(in_channels // 4, 1), config.upsampling or "transposed"
        narrow = ConvNormAct(in_channels, width, 1)
        if how == "transposed":  # the paper's
            conv = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1, bias=False)
            double = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        else:
            double = nn.Sequential(nn.Upsample(scale_factor=2, mode=how), ConvNormAct(width, width))
        super().__init__(narrow, double, ConvNormAct(width, out_channels, 1))

    def forward(self, features: torch.Tensor, *skips: torch.Tensor) -> torch.Tensor:
        return sum(skips, start=super().forward(features))


class LinkNet(UNet):
    """A U-Net whose skips are added, not concatenated: each block gives as many channels as the skip has."""

    options = EncoderDecoder.options
    block = LinkBlock

    def decoder_widths(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(self.channels.get(stride, LAST_WIDTH) for stride in self.strides)
