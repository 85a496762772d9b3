"""From the decoder's features to logits at full size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import ConvNormAct


class LogitConv(nn.Conv2d):
    """3x3 convolution from features (N, C, H / scale, W / scale) to logits (N, 1, H, W).

    Logits are interpolated, or with `pixel_shuffle` predicted for every pixel (Shi et al., 2016); these start equal
    within each cell, so that no checkerboard has to be unlearnt (Aitken et al., 2017).
    """

    def __init__(self, in_channels: int, scale: int, upsampling: str = "bilinear"):
        shuffles = upsampling == "pixel_shuffle"
        super().__init__(in_channels, scale**2 if shuffles else 1, 3, padding=1)
        self.scale, self.shuffles = scale, shuffles
        with torch.no_grad():
            self.weight.copy_(self.weight[:1].expand_as(self.weight))
            self.bias.copy_(self.bias[:1].expand_as(self.bias))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits = super().forward(features)
        if self.shuffles:
            return F.pixel_shuffle(logits, self.scale)
        if self.scale > 1:
            return F.interpolate(logits, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return logits


class Stem(nn.Module):
    """A skip at full size, for edges: joins the photo's own features with the decoder's, brought to stride 1."""

    def __init__(self, in_channels: int, stem_channels: int, scale: int):
        super().__init__()
        self.conv = ConvNormAct(3, stem_channels)
        self.upsample = nn.Upsample(scale_factor=scale, mode="bilinear") if scale > 1 else nn.Identity()
        self.fuse = ConvNormAct(in_channels + stem_channels, stem_channels)

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.fuse(torch.cat([self.upsample(features), self.conv(images)], dim=1))


class Head(LogitConv):
    """Logits of the decoder's last features; while training under deep supervision of its coarser ones as well.

    It is itself the last convolution, `head.weight`. Deep supervision: Lee et al.: Deeply-Supervised Nets, 2015.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], config: ModelConfig):
        """`widths` and `strides` are those of the decoder's levels, coarse to fine."""
        stem_channels, width, stride = config.stem_channels, widths[-1], strides[-1]
        if stem_channels:
            super().__init__(stem_channels, scale=1)
        else:
            super().__init__(width, stride, config.logit_upsampling)
        self.stem = Stem(width, stem_channels, stride) if stem_channels else None
        self.dropout = nn.Dropout2d(config.dropout)
        coarser = zip(widths[:-1], strides[:-1], strict=True) if config.deep_supervision else ()
        self.sides = nn.ModuleList(LogitConv(width, stride) for width, stride in coarser)

    def forward(self, images: torch.Tensor, decoded: list[torch.Tensor]) -> torch.Tensor:
        """Photos (N, 3, H, W) and the decoder's levels, coarse to fine, to logits (N, 1, H, W).

        Under deep supervision, in training, (N, number of levels, H, W): the final logits, then finest to coarsest.
        """
        features = decoded[-1] if self.stem is None else self.stem(images, decoded[-1])
        logits = [super().forward(self.dropout(features))]
        if self.training:
            logits += reversed([side(level) for side, level in zip(self.sides, decoded, strict=False)])
        return torch.cat(logits, dim=1)
