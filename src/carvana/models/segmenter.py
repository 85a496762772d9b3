"""What turns a network into a model: normalization on the device, and any image size."""

import torch
from torch import nn

from carvana.geometry import pad_to_multiple, unpad


class Segmenter(nn.Module):
    """Normalizes and pads uint8 images for `network`, and crops its logits.

    `network` takes normalized images whose sides are multiples of `network.multiple`, and tells its `mean` and
    `std` (of colours in [0, 1]) and the `border` of mirrored context that it wants. Its logits may have several
    channels (deep supervision, in training).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(network.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(network.std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images, padding = pad_to_multiple(images, self.network.multiple, self.network.border)
        images = (images.to(self.mean.dtype) - self.mean) / self.std  # uint8 crosses the bus: a quarter of the bytes
        images = images.to(next(self.network.parameters()).dtype)  # prediction may have cast the weights
        logits = self.network(images.contiguous(memory_format=torch.channels_last))
        return unpad(logits, padding)
