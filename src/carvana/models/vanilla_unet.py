"""The U-Net of the paper (Ronneberger, Fischer, Brox: U-Net, MICCAI 2015), with BatchNorm."""

from itertools import pairwise

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import ConvNormAct, upsampling
from carvana.models.network import Network


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(ConvNormAct(in_channels, out_channels), ConvNormAct(out_channels, out_channels))


class Down(nn.Sequential):
    """Halves the size, then DoubleConv."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))


class Up(nn.Module):
    """Doubles the size, joins the skip, then DoubleConv to the skip's channels."""

    def __init__(self, in_channels: int, skip_channels: int, how: str):
        super().__init__()
        self.upsample, up_channels = upsampling(how, in_channels, skip_channels)
        self.conv = DoubleConv(skip_channels + up_channels, skip_channels)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.upsample(features)], dim=1))


class OutConv(nn.Conv2d):
    """1x1 convolution to logits."""

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 1, kernel_size=1)


class VanillaUNet(Network):
    """Five levels of widths w, 2w, 4w, 8w, 16w (w = 64 in the paper) at strides 1 to 16; random weights.

    Convolutions keep the size. As in the paper, `border` pixels beyond each side are mirrored: `Segmenter` adds them.
    """

    options = frozenset({"base_width", "border", "upsampling", "grad_checkpointing", "pretrained"})
    multiple = 16
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, config: ModelConfig, pretrained: bool = False):  # there are no such weights
        super().__init__(config.grad_checkpointing)
        self.border, width, how = config.border, config.base_width, config.upsampling or "bilinear"
        steps = list(pairwise(width << level for level in range(5)))
        self.stem = DoubleConv(3, width)
        self.contracting = nn.ModuleList(Down(fine, coarse) for fine, coarse in steps)
        self.expanding = nn.ModuleList(Up(coarse, fine, how) for fine, coarse in reversed(steps))
        self.head = OutConv(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features, skips = self.compute(self.stem, images), []  # (N, w, H, W)
        for down in self.contracting:
            skips.append(features)
            features = self.compute(down, features)
        for up in self.expanding:  # from (N, 16w, H / 16, W / 16)
            features = self.compute(up, features, skips.pop())
        return self.head(features)
