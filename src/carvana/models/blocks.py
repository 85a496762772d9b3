"""The parts that the decoders are built of: convolution, upsampling, attention, and the head that gives logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from carvana.config import ModelConfig


class ConvNormAct(nn.Sequential):
    """Convolution (3x3 or 1x1), BatchNorm, ReLU: the size is unchanged."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def enlargement(scale: int) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="bilinear") if scale > 1 else nn.Identity()


def upsampling(how: str, in_channels: int, out_channels: int) -> tuple[nn.Module, int]:
    """The module that doubles the size, and its number of output channels: interpolation keeps `in_channels`."""
    if how == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2), out_channels
    return nn.Upsample(scale_factor=2, mode=how), in_channels


class AttentionGate(nn.Module):
    """Weights each place of a skip by the coarser level's features there (Oktay et al.: Attention U-Net, 2018)."""

    def __init__(self, skip_channels: int, coarse_channels: int):
        super().__init__()
        width = max(skip_channels // 2, 1)
        self.skip_conv = nn.Conv2d(skip_channels, width, 2, stride=2, bias=False)
        self.coarse_conv = nn.Conv2d(coarse_channels, width, 1)
        self.score = nn.Conv2d(width, 1, 1)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """A skip (N, ., 2h, 2w) and coarser features (N, ., h, w) to the skip with weights in (0, 1)."""
        scores = self.score(F.relu(self.skip_conv(skip) + self.coarse_conv(coarse)))  # (N, 1, h, w)
        return skip * F.interpolate(scores.sigmoid(), scale_factor=2, mode="bilinear", align_corners=False)


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation, their sum (Roy, Navab, Wachinger, 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        width = max(channels // 2, 1)
        squeeze, excite = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.channel = nn.Sequential(nn.AdaptiveAvgPool2d(1), squeeze, nn.ReLU(inplace=True), excite, nn.Sigmoid())
        self.place = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * (self.channel(features) + self.place(features))  # (N, C, 1, 1) + (N, 1, H, W)


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
        if self.gate is not None:
            skips = (self.gate(torch.cat(skips, dim=1), coarse),)
        return self.scse(self.conv2(self.join(coarse, *skips)))

    def join(self, coarse: torch.Tensor, *skips: torch.Tensor) -> torch.Tensor:
        return self.conv1(torch.cat([self.upsample(coarse), *skips], dim=1))


class LogitConv(nn.Conv2d):
    """3x3 convolution from features (N, C, H / scale, W / scale) to logits (N, 1, H, W).

    Logits are interpolated or, with `pixel_shuffle`, predicted for every pixel (Shi et al., 2016). Predicted ones start
    equal within each cell: otherwise training begins with a checkerboard (Aitken et al., 2017).
    """

    def __init__(self, in_channels: int, scale: int, upsampling: str = "bilinear"):
        shuffles = upsampling == "pixel_shuffle"
        super().__init__(in_channels, scale**2 if shuffles else 1, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
        self.upsample = nn.PixelShuffle(scale) if shuffles else enlargement(scale)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.upsample(super().forward(features))


class Stem(nn.Module):
    """A skip at full size, for edges: joins the images' own features with the decoder's, brought to stride 1."""

    def __init__(self, in_channels: int, stem_channels: int, scale: int):
        super().__init__()
        self.conv = ConvNormAct(3, stem_channels)
        self.upsample = enlargement(scale)
        self.fuse = ConvNormAct(in_channels + stem_channels, stem_channels)

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.fuse(torch.cat([self.upsample(features), self.conv(images)], dim=1))


class Head(LogitConv):
    """Logits of the decoder's last features; with deep supervision, in training, of its coarser features as well.

    The head is itself the last convolution (`head.weight`). Lee et al.: Deeply-Supervised Nets, 2015.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], config: ModelConfig):
        """`widths` and `strides` are those of the decoder's levels, coarse to fine."""
        width, stride = (config.stem_channels, 1) if config.stem_channels else (widths[-1], strides[-1])
        super().__init__(width, stride, config.logit_upsampling)
        self.stem = Stem(widths[-1], config.stem_channels, strides[-1]) if config.stem_channels else None
        self.dropout = nn.Dropout2d(config.dropout)
        coarser = zip(widths[:-1], strides[:-1], strict=True) if config.deep_supervision else ()
        self.sides = nn.ModuleList(LogitConv(width, stride) for width, stride in coarser)

    def forward(self, images: torch.Tensor, decoded: list[torch.Tensor]) -> torch.Tensor:
        """Images (N, 3, H, W) and the decoder's levels, coarse to fine, to logits (N, 1, H, W).

        With deep supervision, in training, (N, number of levels, H, W): the final logits, then finest to coarsest.
        """
        features = decoded[-1] if self.stem is None else self.stem(images, decoded[-1])
        logits = [super().forward(self.dropout(features))]
        if self.training:
            logits += reversed([side(level) for side, level in zip(self.sides, decoded, strict=False)])
        return torch.cat(logits, dim=1)
