"""Photos and masks at network size, decoded once in a run: what a loader reads instead of JPEG and GIF files."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

from carvana.geometry import Fit, Size, window_around
from carvana.images import Photos
from carvana.log import say

GIB = 2**30
LEFT_FREE = GIB  # of the disk, for checkpoints and logs
PREFIX, SUFFIX = "carvana-", ".cache"
YOUNG = 60  # seconds: a file without a lock is not a dead run's yet
DONE = b"\1"


class PhotoCache:
    """Photos and masks at network size by index; up to `gib` of them are kept in a temporary file when first decoded.

    The processes it is forked or pickled into share the file, whatever they read or write. It is removed with the
    cache that made it; what a killed run left behind, the next one removes. Without room for it nothing is kept.
    """

    def __init__(self, photos: Photos, fit: Fit, gib: float):
        self.photos, self.fit, self.image_ids = photos, fit, photos.image_ids
        self._file = create_file(len(self.image_ids), fit.size, gib)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (h, w, 3) and mask (h, w), 255 times the coverage, both uint8 and the caller's own."""
        if self._file and (kept := self._file.read(index)):
            return kept
        image_id = self.image_ids[index]
        mask, fit = self.photos.mask(image_id), self.fit
        if fit.boxes_from:
            fit = fit.through(window_around(mask, fit.margin))
        (image,), _ = self.photos.fitted(image_id, [fit])
        mask = fit.mask(mask)
        if self._file:
            self._file.write(index, image, mask)
        return image, mask


class CacheFile:
    """A byte that says whether the disk was full, one for each item that says whether it is all there, the items.

    The byte of an item is written after it: a process may be killed, or two write the same item, and no half item is
    ever read. Each access opens the file anew, so that any process may have it, and none can be hurt by a full disk
    as it would through a memory map; the system's page cache makes it as fast.
    """

    def __init__(self, path: Path, count: int, size: Size):
        self.path, self.count, self.size = path, count, size

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image and mask, or None if they are not there."""
        if not 0 <= index < self.count:
            return None
        image, mask = np.empty((*self.size, 3), np.uint8), np.empty(self.size, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(1 + index)
                if file.read(1) != DONE:
                    return None
                file.seek(self._offset(index))
                whole = file.readinto(image) == image.nbytes and file.readinto(mask) == mask.nbytes
        except OSError:
            return None
        return (image, mask) if whole else None

    def write(self, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Keeps an item unless it is beyond the bound; when the disk is full, says so once and keeps no more."""
        if not 0 <= index < self.count:
            return
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
        file.seek(self._offset(index))
        for pixels in (image, mask):
            if file.write(np.ascontiguousarray(pixels)) != pixels.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.seek(1 + index)
        file.write(DONE)

    def _offset(self, index: int) -> int:
        return 1 + self.count + index * item_bytes(self.size)


def item_bytes(size: Size) -> int:
    return 4 * size[0] * size[1]


def create_file(count: int, size: Size, gib: float) -> CacheFile | None:
    """A sparse file for as many of `count` items as `gib` holds; None if it holds none or the disk has no room."""
    count = min(count, int(gib * GIB) // item_bytes(size))
    needed, folder = count * item_bytes(size), Path(tempfile.gettempdir())
    if count == 0:
        return None
    try:
        remove_leftovers(folder)
        free = shutil.disk_usage(folder).free
        if free < needed + LEFT_FREE:
            raise OSError(errno.ENOSPC, f"{free / GIB:.1f} GiB free, {(needed + LEFT_FREE) / GIB:.1f} needed")
        descriptor, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
        file = CacheFile(Path(name), count, size)
        weakref.finalize(file, _remove, file.path, descriptor, os.getpid())
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until this process and all forked from it are gone
        os.write(descriptor, bytes(1 + count))
        os.ftruncate(descriptor, 1 + count + needed)
    except OSError as error:
        say(f"{folder}: no cache ({error.strerror}), photos are decoded each epoch; data.cache_gib=0 asks for none")
        return None
    return file


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
