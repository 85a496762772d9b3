"""Whole photos as uint8 tensors, loaded while the device computes; and work in threads and processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import cv2
import numpy as np
import torch

from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos
from carvana.device import end_with_parent
from carvana.errors import InputError

AHEAD = 4  # batches loaded before they are asked for
ONE_CORE = {"initializer": torch.set_num_threads, "initargs": (1,)}  # for each thread; the caller's stays as it is
PRELOADED = ["accelerate", "albumentations", "cv2", "timm", "torch"]  # imported once, by the server: they take seconds


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (h, w, 3) to (3, h, w) without moving a byte: the memory is already channels_last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


@dataclass(frozen=True)
class Loading:
    """How whole photos are loaded: photos of a batch, threads that read them (0: the caller's own)."""

    batch_size: int = 4
    num_workers: int = 2


class PhotoBatch(NamedTuple):
    """Consecutive photos at the network size of each of several fits."""

    image_ids: list[str]
    images: dict[Fit, torch.Tensor]  # (N, 3, h, w) uint8 on the device
    sizes: list[Size]  # of the photos
    masks: list[torch.Tensor | None]  # bool (height, width) at photo size, on the CPU; None if not asked for


def load_photos(
    photos: Photos, image_ids: list[str], fits: list[Fit], device: torch.device, loading: Loading, masks: bool = False
) -> Iterator[PhotoBatch]:
    """All of `image_ids` in order, never augmented, for validation and prediction.

    They are loaded ahead in threads: no process has to be started, and no byte sent. All threads work on one batch, so
    that they are done soon: while a thread occupies one core, a network on all cores waits.
    """

    def load_photo(image_id: str) -> tuple:
        images, size = photos.fitted(image_id, fits)
        mask = torch.from_numpy(photos.mask(image_id)) if masks else None
        if mask is not None and mask.shape != size:
            path = photos.mask_part.where(photos.mask_name(image_id))
            raise InputError(f"{path}: (height, width) is {tuple(mask.shape)}, its photo's is {size}; replace it")
        return [to_tensor(image) for image in images], size, mask

    def load_batch(batch: list[str], map_photos: Callable = map) -> PhotoBatch:
        images, sizes, batch_masks = zip(*map_photos(load_photo, batch), strict=True)
        stacked = [torch.stack(tensors) for tensors in zip(*images, strict=True)]
        if device.type == "cuda":
            stacked = [tensor.pin_memory() for tensor in stacked]
        return PhotoBatch(batch, dict(zip(fits, stacked, strict=True)), list(sizes), list(batch_masks))

    cv2.setNumThreads(0)  # in each of these threads: the others are the model's
    size = loading.batch_size
    batches = [image_ids[first : first + size] for first in range(0, len(image_ids), size)]
    with ThreadPoolExecutor(loading.num_workers or 1, **ONE_CORE) as pool:
        in_threads = partial(load_batch, map_photos=pool.map)
        loaded = map_in_threads(in_threads, batches, 1, AHEAD) if loading.num_workers else map(load_batch, batches)
        for batch in loaded:
            images = {fit: pixels.to(device, non_blocking=True) for fit, pixels in batch.images.items()}
            yield batch._replace(images=images)


def map_in_threads(function: Callable, items: Iterable, threads: int, waiting: int) -> Iterator:
    """`map` in threads: results in the items' order; no item is taken from `items` while `waiting` results are due."""
    pending = deque()
    with ThreadPoolExecutor(threads, **ONE_CORE) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def worker_options(num_workers: int) -> dict:
    """A DataLoader's arguments for its processes."""
    # They are forked from a small server, not from this process: after a fork, each page of memory is copied when
    # training writes to it, which took 8 s of an epoch's first step (3 GB, two cores of a virtual Xeon).
    options = {"num_workers": num_workers, "worker_init_fn": init_worker}
    if num_workers:
        options["multiprocessing_context"] = context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    return options


def init_worker(_: int) -> None:
    """A loader process uses one thread, as the others are the model's, and ends with the process that trains."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # PyTorch's own watch sees only the death of its parent, the forkserver, which outlives a killed training.
    end_with_parent()
