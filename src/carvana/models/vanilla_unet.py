"""The U-Net of the paper (Ronneberger, Fischer, Brox: U-Net, MICCAI 2015), with BatchNorm.

Convolutions keep the size, so that logits come at the input's size; the context that the paper takes from beyond
the border by mirroring is added by `Segmenter`: `border` pixels on each side.
"""

import torch
from torch import nn

from carvana.config import ModelConfig


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        layers = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class Down(nn.Sequential):
    """Halves the size, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))


class Up(nn.Module):
    """Doubles the size, joins the skip, then DoubleConv to half the channels."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, upsampling: str):
        super().__init__()
        if upsampling == "bilinear":
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            up_channels = in_channels
        else:
            up_channels = in_channels // 2
            self.up = nn.ConvTranspose2d(in_channels, up_channels, 2, stride=2)
        self.conv = DoubleConv(up_channels + skip_channels, out_channels)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.up(features)], dim=1))


class OutConv(nn.Conv2d):
    """1x1 convolution to logits."""

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 1, 1)


class VanillaUNet(nn.Module):
    """Widths w, 2w, 4w, 8w, 16w (w = 64 in the paper); random weights."""

    multiple = 16
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, base_width: int = 64, upsampling: str = "bilinear", border: int = 0):
        super().__init__()
        self.border = border
        w1, w2, w3, w4, w5 = (base_width << level for level in range(5))
        self.inc = DoubleConv(3, w1)
        self.down1 = Down(w1, w2)
        self.down2 = Down(w2, w3)
        self.down3 = Down(w3, w4)
        self.down4 = Down(w4, w5)
        self.up1 = Up(w5, w4, w4, upsampling)
        self.up2 = Up(w4, w3, w3, upsampling)
        self.up3 = Up(w3, w2, w2, upsampling)
        self.up4 = Up(w2, w1, w1, upsampling)
        self.outc = OutConv(w1)

    @classmethod
    def from_config(cls, config: ModelConfig, pretrained: bool) -> "VanillaUNet":
        return cls(config.base_width, config.upsampling, config.border)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x1 = self.inc(images)  # (N, w, H, W)
        x2 = self.down1(x1)  # (N, 2w, H/2, W/2)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x5 = self.down4(x4)  # (N, 16w, H/16, W/16)
        x = self.up1(x5, x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)  # (N, w, H, W)
        return self.outc(x)
