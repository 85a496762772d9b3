"""Attention that weights features by place or by channel: attention gates and scSE."""

import torch
import torch.nn.functional as F
from torch import nn


class AttentionGate(nn.Module):
    """Weights each place of a skip by what the coarser level sees there (Oktay et al.: Attention U-Net, 2018)."""

    def __init__(self, skip_channels: int, coarse_channels: int):
        super().__init__()
        width = max(skip_channels // 2, 1)
        self.skip_conv = nn.Conv2d(skip_channels, width, 2, stride=2, bias=False)
        self.coarse_conv = nn.Conv2d(coarse_channels, width, 1)
        self.score = nn.Conv2d(width, 1, 1)

    def weights(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """(N, 1, 2h, 2w), each in (0, 1), of a skip (N, ., 2h, 2w) and coarser features (N, ., h, w)."""
        scores = self.score(F.relu(self.skip_conv(skip) + self.coarse_conv(coarse)))
        return F.interpolate(scores.sigmoid(), scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, skip: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return skip * self.weights(skip, coarse)


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation, their sum (Roy, Navab, Wachinger, 2018)."""

    def __init__(self, channels: int, reduction: int = 2):
        super().__init__()
        width = max(channels // reduction, 1)
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1),
            nn.Sigmoid(),
        )
        self.place = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * (self.channel(features) + self.place(features))  # (N, C, 1, 1) + (N, 1, H, W)
