"""Photos as tensors. Everything stays uint8 until it is on the device."""

import multiprocessing.connection
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from carvana.augmentations import augment, build_augmentation
from carvana.cache import PhotoCache
from carvana.geometry import Fit, Size
from carvana.images import Photos
from carvana.threads import map_in_threads

AHEAD = 4  # batches loaded before they are asked for
PRELOADED = ["accelerate", "albumentations", "cv2", "timm", "torch"]  # by the server, once: they take seconds


class TrainSet(Dataset):
    """Augmented photos: image (3, h, w) uint8, mask (1, h, w) uint8, 255 times the coverage, and the photo's index.

    Item i is photo `order[i]` of the source, or photo i; with `crop` a random window (height, width) of it. What it
    becomes depends on seed, epoch, the photo's index and how often that came before in `order`, on nothing else: so a
    resumed run sees what an uninterrupted one would have seen, and a repeated photo is another one each time.
    """

    def __init__(
        self,
        source: PhotoCache,
        augmentation: str,
        seed: int,
        epoch: int,
        crop: Size | None = None,
        order: Iterable[int] | None = None,
    ):
        self.source, self.seed, self.epoch, self.crop = source, seed, epoch, crop
        self.augmentation = build_augmentation(augmentation)
        self.order = list(range(len(source)) if order is None else map(int, order))
        self._repeats = list(count_earlier(self.order))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        index, repeat = self.order[item], self._repeats[item]
        generator = np.random.default_rng([self.seed, self.epoch, index, *([repeat] if repeat else [])])
        image, mask = self.source[index]
        if self.crop:
            image, mask = random_window(image, mask, self.crop, generator)
        image, mask = augment(self.augmentation, image, mask, generator)
        return to_tensor(image), torch.from_numpy(np.ascontiguousarray(mask))[None], index


def count_earlier(order: list[int]) -> Iterator[int]:
    """For each index how often it came before."""
    seen = Counter()
    for index in order:
        yield seen[index]
        seen[index] += 1


def random_window(image: np.ndarray, mask: np.ndarray, size: Size, generator: np.random.Generator) -> tuple:
    """The same window, of `size`, of image and mask; all places are equally likely."""
    top, left = (int(generator.integers(side - part + 1)) for side, part in zip(mask.shape, size, strict=True))
    window = slice(top, top + size[0]), slice(left, left + size[1])
    return image[window], mask[window]


class PhotoSet:
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
        images, size = self.photos.fitted(image_id, [self.photos.through(image_id, fit) for fit in self.fits])
        mask = torch.from_numpy(self.photos.mask(image_id)) if self.masks else None
        return image_id, [to_tensor(image) for image in images], size, mask


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (h, w, 3) to (3, h, w) without moving a byte: the memory is already channels_last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def collate_photos(items: list[tuple]) -> tuple[list[str], list[torch.Tensor], list[Size], list]:
    """Image ids, one batch (N, 3, h, w) for each fit, photo sizes, masks."""
    image_ids, images, sizes, masks = zip(*items, strict=True)
    return (
        list(image_ids),
        [torch.stack(batch) for batch in zip(*images, strict=True)],
        list(sizes),
        list(masks),
    )


def photo_loader(photos: PhotoSet, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[tuple]:
    """Batches of whole photos in order, none left out, as `collate_photos` makes them.

    They are loaded ahead in threads, `num_workers` of them: no process has to be started, and no byte sent from one.
    All of them work on one batch: what a thread takes of one core, a network on all cores loses on each of them.
    """

    def load(places: range, map_photos: Callable = map) -> tuple:
        image_ids, images, sizes, masks = collate_photos(list(map_photos(photos.__getitem__, places)))
        return image_ids, [batch.pin_memory() for batch in images] if pin_memory else images, sizes, masks

    cv2.setNumThreads(0)  # in each of these threads: the others are the model's
    batches = [range(first, min(first + batch_size, len(photos))) for first in range(0, len(photos), batch_size)]
    if not num_workers:
        yield from map(load, batches)
        return
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from map_in_threads(partial(load, map_photos=pool.map), batches, threads=1, waiting=AHEAD)


def worker_options(num_workers: int) -> dict:
    """A DataLoader's arguments for its processes.

    They are forked from a small server, not from this process: after a fork, each page that training writes to is
    copied first, which cost 8 s of an epoch's first step (3 GB, two cores of a virtual Xeon).
    """
    options = {"num_workers": num_workers, "worker_init_fn": init_worker}
    if num_workers and "forkserver" in multiprocessing.get_all_start_methods():  # not on Windows
        options["multiprocessing_context"] = context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    return options


def init_worker(_: int) -> None:
    """A loader process uses one thread, as the others are the model's, and ends with the one that it loads for.

    PyTorch's own watch over that sees the death of its parent, the forkserver, which outlives a killed training.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
