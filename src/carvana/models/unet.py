"""U-Net with any timm encoder (Ronneberger, Fischer, Brox, 2015; pretrained encoder as in TernausNet, 2018)."""

import torch
import torch.nn.functional as F
from torch import nn

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models.blocks import ConvNormAct
from carvana.models.depthwise import replace_slow_depthwise
from carvana.models.encoder import create_encoder


class DecoderBlock(nn.Module):
    """Doubles the size, joins the skip of that size if there is one, and convolves twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels + skip_channels, out_channels)
        self.conv2 = ConvNormAct(out_channels, out_channels)

    def forward(self, features: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        features = F.interpolate(features, scale_factor=2, mode="nearest")
        if skip is not None:
            features = torch.cat([features, skip], dim=1)
        return self.conv2(self.conv1(features))


class UNet(nn.Module):
    """Encoder levels of strides s1 < ... < sn (from timm's `feature_info`), a decoder block per halving.

    The decoder goes from sn to `decoder_stride`, with a skip wherever the encoder has a level of that stride;
    encoders that start at stride 4 (ConvNeXt) or 1 (VGG) need no special case. Where the decoder stops
    above stride 1, the logits are upsampled: at 512x768 a stride of 2 still places an edge below a photo pixel.
    """

    border = 0

    def __init__(self, encoder: nn.Module, decoder_channels: tuple[int, ...], decoder_stride: int = 1):
        super().__init__()
        self.encoder = encoder
        self.mean, self.std = encoder.pretrained_cfg["mean"], encoder.pretrained_cfg["std"]
        channels = dict(zip(encoder.feature_info.reduction(), encoder.feature_info.channels(), strict=True))
        self.multiple = max(channels)
        self.decoder_stride = decoder_stride
        strides = [self.multiple >> level for level in range(1, self.multiple.bit_length())]
        strides = [stride for stride in strides if stride >= decoder_stride]  # 16, 8, 4, 2, 1
        if len(decoder_channels) < len(strides):
            raise InputError(f"model.decoder_channels: {len(strides)} levels needed, {len(decoder_channels)} given")
        self.skip_levels = [list(channels).index(stride) if stride in channels else None for stride in strides]
        self.decoder = nn.ModuleList()
        in_channels = channels[self.multiple]
        for stride, out_channels in zip(strides, decoder_channels, strict=False):
            self.decoder.append(DecoderBlock(in_channels, channels.get(stride, 0), out_channels))
            in_channels = out_channels
        self.head = nn.Conv2d(in_channels, 1, 3, padding=1)

    @classmethod
    def from_config(cls, config: ModelConfig, pretrained: bool) -> "UNet":
        encoder = create_encoder(config.encoder, config.pretrained and pretrained, config.weights)
        replace_slow_depthwise(encoder)
        return cls(encoder, config.decoder_channels, config.decoder_stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = self.encoder(images)  # (N, channels, H / stride, W / stride), finest first
        features = levels[-1]
        for block, level in zip(self.decoder, self.skip_levels, strict=True):
            features = block(features, levels[level] if level is not None else None)
        logits = self.head(features)  # (N, 1, H / decoder_stride, W / decoder_stride)
        if self.decoder_stride > 1:
            logits = F.interpolate(logits, scale_factor=self.decoder_stride, mode="bilinear", align_corners=False)
        return logits
