"""Photos and masks at network size, decoded once in a run: loaders read them instead of JPEG and GIF files."""

import errno
import fcntl
import math
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from copy import copy
from io import FileIO
from pathlib import Path

import numpy as np
import psutil

from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.log import say

GIB = 2**30
LEFT_FREE = GIB  # of the disk, for checkpoints and logs
PREFIX, SUFFIX = "carvana-", ".cache"
YOUNG = 60  # seconds: a file without a lock is not a dead run's yet
DONE = b"\1"


class PhotoCache:
    """Photos and masks at network size by index; up to `gib` of them are kept in a temporary file when first decoded.

    The processes that it is forked or pickled into read and write the same file. The file is removed with the cache
    that made it, or by the next run if its run was killed. With less room on the disk fewer are kept.

    The file is one byte (the disk was full), one byte an item (it is complete), the items. An item's byte is written
    last: a process may be killed, or two write the same item, and no half item is ever read. A full disk is an error
    that can be handled; through a memory map it would kill the process. The system's page cache makes it as fast.
    """

    def __init__(self, photos: Photos, fit: Fit, gib: float):
        self.photos, self.fit, self.image_ids = photos, fit, photos.image_ids
        self._shapes = (*fit.size, 3), (*fit.size, *photos.layers)
        self._item_bytes = sum(map(math.prod, self._shapes))
        self._count = min(len(self.image_ids), items_in(gib, fit, photos.layers))
        self.path = self._create_file() if self._count else None

    def join(self, path: Path | None) -> "PhotoCache":
        """Shares the file of another process of this machine, which made it of the same photos and fit."""
        if path and path.exists():  # another machine may have the same name
            self.path = path
            self._count = (path.stat().st_size - 1) // (1 + self._item_bytes)
        return self

    def of(self, photos: Photos) -> "PhotoCache":
        """The same cache; photos that are not in it are read from `photos`, which may lack those not asked for."""
        other = copy(self)
        other.photos = photos
        return other

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (h, w, 3) and mask (h, w, *layers), 255 times the coverage, both uint8 and the caller's own."""
        is_kept = self.path and 0 <= index < self._count
        if is_kept and (item := self._read(index)):
            return item
        image_id = self.image_ids[index]
        mask = self.fit.mask(self.photos.mask(image_id))
        (image,), _ = self.photos.fitted(image_id, [self.fit])
        if is_kept:
            self._write(index, image, mask)
        return image, mask

    def _create_file(self) -> Path | None:
        """A sparse file, for as many items as the disk has room for; None if for none."""
        wanted, folder = self._count, Path(tempfile.gettempdir())
        try:
            remove_leftovers(folder)
            free = _room(folder)
            self._count = min(wanted, (free - LEFT_FREE) // self._item_bytes)
            if self._count <= 0:
                raise OSError(errno.ENOSPC, f"{free / GIB:.1f} GiB free, {LEFT_FREE / GIB:.1f} are left so")
            if self._count < wanted:
                say(f"{folder}: {free / GIB:.1f} GiB free, so {self._count} of {wanted} photos are cached")
            descriptor, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
            weakref.finalize(self, _remove, Path(name), descriptor, os.getpid())
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until this process and all forked from it are gone
            os.write(descriptor, bytes(1 + self._count))
            os.ftruncate(descriptor, 1 + self._count + self._count * self._item_bytes)
        except OSError as error:
            say(f"{folder}: no cache ({error.strerror}), photos are decoded each epoch; data.cache_gib=0 asks for none")
            return None
        return Path(name)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        image, mask = (np.empty(shape, np.uint8) for shape in self._shapes)
        with suppress(OSError), self.path.open("rb", buffering=0) as file:
            file.seek(1 + index)
            if file.read(1) == DONE:
                file.seek(1 + self._count + index * self._item_bytes)
                if file.readinto(image) == image.nbytes and file.readinto(mask) == mask.nbytes:
                    return image, mask
        return None

    def _write(self, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Keeps an item; when the disk is full, says so once and keeps no more."""
        with suppress(OSError), self.path.open("r+b", buffering=0) as file:  # it is gone when the run ends
            if file.read(1) == DONE:
                return
            try:
                self._write_item(file, index, image, mask)
            except OSError as error:
                file.seek(0)
                file.write(DONE)
                say(f"{self.path}: {error.strerror}; photos not in this cache yet are decoded each epoch")

    def _write_item(self, file: FileIO, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        file.seek(1 + self._count + index * self._item_bytes)
        for pixels in (image, mask):
            if file.write(np.ascontiguousarray(pixels)) != pixels.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.seek(1 + index)
        file.write(DONE)


def items_in(gib: float, fit: Fit, layers: tuple[int, ...]) -> int:
    """How many photos and masks of these layers are kept in so much."""
    return int(gib * GIB) // (math.prod(fit.size) * (3 + math.prod(layers)))


def _room(folder: Path) -> int:
    """Free bytes of the folder's disk; half of the free memory where that is the disk, as /tmp is on some systems."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    free = shutil.disk_usage(folder).free
    is_memory = mount and mount.fstype in ("tmpfs", "ramfs")
    return min(free, psutil.virtual_memory().available // 2) if is_memory else free


def remove_leftovers(folder: Path) -> None:
    """Removes the files that nobody holds a lock on: their runs were killed."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:  # locked, another user's, or just removed by another run
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > YOUNG:
                path.unlink()


def _remove(path: Path, descriptor: int, owner: int) -> None:
    """Removes the file in the process that made it; one forked from it only forgets it."""
    if os.getpid() == owner:
        os.close(descriptor)
        path.unlink(missing_ok=True)
