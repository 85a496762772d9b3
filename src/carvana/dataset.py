"""Photos as tensors. Everything stays uint8 until it is on the device."""

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from carvana.augmentations import augment, build_augmentation
from carvana.geometry import Fit
from carvana.images import Photos


class TrainSet(Dataset):
    """Augmented photos at network size: image (3, h, w) uint8 and mask (1, h, w) uint8, 255 times the coverage.

    What index i of epoch e becomes depends on (seed, e, i) alone, so that a resumed run sees what an
    uninterrupted one would have seen.
    """

    def __init__(self, photos: Photos, fit: Fit, augmentation: str, seed: int, epoch: int):
        self.photos, self.fit, self.seed, self.epoch = photos, fit, seed, epoch
        self.augmentation = build_augmentation(augmentation)

    def __len__(self) -> int:
        return len(self.photos.image_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_id = self.photos.image_ids[index]
        image, mask = self.fit.image(self.photos.image(image_id)), self.fit.mask(self.photos.mask(image_id))
        image, mask = augment(self.augmentation, image, mask, [self.seed, self.epoch, index])
        return to_tensor(image), torch.from_numpy(np.ascontiguousarray(mask))[None]


class PhotoSet(Dataset):
    """Whole photos, never augmented, for validation and prediction.

    Gives image_id, one image (3, h, w) uint8 for each of `fits`, the photo's (height, width), and its mask
    (H, W) bool at photo size, or None without `masks`.
    """

    def __init__(self, photos: Photos, image_ids: list[str], fits: list[Fit], masks: bool):
        self.photos, self.image_ids, self.fits, self.masks = photos, image_ids, fits, masks

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple:
        image_id = self.image_ids[index]
        image = self.photos.image(image_id)
        mask = torch.from_numpy(self.photos.mask(image_id)) if self.masks else None
        return image_id, [to_tensor(fit.image(image)) for fit in self.fits], image.shape[:2], mask


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (h, w, 3) to (3, h, w) without moving a byte: the memory is already channels_last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def collate_photos(items: list[tuple]) -> tuple[list[str], list[torch.Tensor], list[tuple[int, int]], list]:
    """Image ids, one batch (N, 3, h, w) for each fit, photo sizes, masks."""
    image_ids, images, sizes, masks = zip(*items, strict=True)
    return (
        list(image_ids),
        [torch.stack(batch) for batch in zip(*images, strict=True)],
        list(sizes),
        list(masks),
    )


def photo_loader(photos: PhotoSet, batch_size: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """Batches of whole photos in order, none left out."""
    return DataLoader(
        photos, batch_size, num_workers=num_workers, collate_fn=collate_photos, pin_memory=pin_memory,
        worker_init_fn=quiet_worker,
    )  # fmt: skip


def quiet_worker(_: int) -> None:
    """A loader process uses one thread: the others are the model's."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
