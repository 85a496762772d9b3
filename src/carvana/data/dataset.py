"""Photos to train on, as uint8 tensors. Apart from `loader`, as albumentations takes seconds to import."""

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from carvana.data.augmentations import augment, build_augmentation
from carvana.data.cache import PhotoCache
from carvana.data.geometry import Size
from carvana.data.loader import to_tensor


class TrainSet(Dataset):
    """Augmented photos: image (3, h, w) uint8, and mask (1, h, w) uint8, 255 times the coverage.

    With pseudo-labelled photos a mask has a second layer: 255 times the share of the pixel that is disputed.

    With `crop`, a random window (height, width) of them. What a photo becomes depends on seed, epoch and its index
    alone, so a resumed run trains on the same pixels as an uninterrupted one.
    """

    def __init__(self, source: PhotoCache, augmentation: str, seed: int, epoch: int, crop: Size | None = None):
        self.source, self.seed, self.epoch, self.crop = source, seed, epoch, crop
        self.augmentation = build_augmentation(augmentation)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = np.random.default_rng([self.seed, self.epoch, index])
        image, mask = self.source[index]
        if self.crop:  # all places are equally likely
            height, width = self.crop
            top, left = (int(generator.integers(room + 1)) for room in np.subtract(mask.shape[:2], self.crop))
            image, mask = (pixels[top : top + height, left : left + width] for pixels in (image, mask))
        image, mask = augment(self.augmentation, image, mask, generator)
        return to_tensor(image), torch.from_numpy(np.ascontiguousarray(np.atleast_3d(mask).transpose(2, 0, 1)))


def collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch whose images stay channels_last; PyTorch's own way would lay them out anew."""
    images, masks = default_collate([(image.permute(1, 2, 0), mask) for image, mask in items])
    return images.permute(0, 3, 1, 2), masks
