"""The blocks of which the U-Nets are built."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.attention import SCSE, AttentionGate
from carvana.models.dense import Conv3x3


class ConvNormAct(nn.Sequential):
    """Convolution (3x3, or 1x1), BatchNorm, ReLU: size unchanged."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__(
            Conv3x3(in_channels, out_channels)
            if kernel_size == 3
            else nn.Conv2d(in_channels, out_channels, kernel_size, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def upsampling(how: str, in_channels: int, out_channels: int) -> tuple[nn.Module, int]:
    """What doubles the size, and the channels it gives: interpolation keeps `in_channels`."""
    if how == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2), out_channels
    return nn.Upsample(scale_factor=2, mode=how), in_channels


class DecoderBlock(nn.Module):
    """Doubles the size, joins the skips of that size if there are any, and convolves twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, config: ModelConfig):
        super().__init__()
        self.upsample, up_channels = upsampling(config.upsampling or "nearest", in_channels, out_channels)
        gated = config.attention_gates and skip_channels > 0
        self.gate = AttentionGate(skip_channels, in_channels) if gated else None
        self.conv1 = ConvNormAct(up_channels + skip_channels, out_channels)
        self.conv2 = ConvNormAct(out_channels, out_channels)
        self.scse = SCSE(out_channels) if config.scse else nn.Identity()

    def forward(self, coarse: torch.Tensor, *skips: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, h, w) and skips (N, ., 2h, 2w) of `skip_channels` in all to (N, out_channels, 2h, 2w)."""
        features = self.upsample(coarse)
        if self.gate is not None:
            skips = (self.gate(torch.cat(skips, dim=1), coarse),)
        if skips:
            features = torch.cat([features, *skips], dim=1)
        return self.scse(self.conv2(self.conv1(features)))
