"""The block of which both U-Nets are built."""

from torch import nn


class ConvNormAct(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU: size unchanged."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
