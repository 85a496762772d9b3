"""The cache gives what decoding gives, whoever wrote it, and without room for it everything goes on."""

import errno
import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from carvana import cache
from carvana.cache import GIB, PhotoCache, item_bytes
from carvana.geometry import Fit
from carvana.images import Photos, open_train

FIT = Fit((32, 48))
ITEM_GIB = item_bytes(FIT.size) / GIB


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where caches are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The photos decoded so far."""
    names, fitted = [], Photos.fitted
    monkeypatch.setattr(Photos, "fitted", lambda self, name, fits: names.append(name) or fitted(self, name, fits))
    return names


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(cache, "say", lines.append)
    return lines


@pytest.fixture
def photos(demo) -> Photos:
    return open_train(demo / "input")


def assert_right(items: list, photos: Photos, indices) -> None:
    """Items are what comes without a cache."""
    plain = PhotoCache(photos, FIT, gib=0)
    for (image, mask), index in zip(items, indices, strict=True):
        assert image.dtype == mask.dtype == np.uint8
        assert np.array_equal(image, plain[index][0])
        assert np.array_equal(mask, plain[index][1])


def read(photo_cache: PhotoCache, indices: list[int]) -> list:
    return [photo_cache[index] for index in indices]


def test_photos_are_decoded_once(photos, folder, decoded):
    kept = PhotoCache(photos, FIT, gib=1)
    assert (len(kept), kept.image_ids) == (64, photos.image_ids)
    indices = [5, 0, 63, 5, 0, 63]
    items = read(kept, indices)
    assert decoded == [photos.image_ids[index] for index in (5, 0, 63)]
    items[0][0][:] = 0  # a caller may write into what it got
    assert_right([kept[5], *items[1:]], photos, indices)


def test_photos_beyond_the_bound_are_decoded_each_time(photos, folder, decoded):
    kept = PhotoCache(photos, FIT, gib=2.5 * ITEM_GIB)
    items = read(kept, [0, 1, 2, 0, 1, 2])
    assert [photos.image_ids.index(name) for name in decoded] == [0, 1, 2, 2]
    assert_right(items, photos, [0, 1, 2, 0, 1, 2])
    (path,) = folder.iterdir()
    assert path.stat().st_size == 1 + 2 + 2 * item_bytes(FIT.size)


@pytest.mark.parametrize("gib", [0, 0.9 * ITEM_GIB])
def test_no_room_for_one_photo_is_no_file(photos, folder, said, gib):
    assert_right([PhotoCache(photos, FIT, gib)[3]], photos, [3])
    assert not list(folder.iterdir())
    assert not said


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_share_it(photos, folder, decoded, method):
    kept = PhotoCache(photos, FIT, gib=1)
    kept[1]
    with get_context(method).Pool(2) as pool:
        shares = pool.starmap(read, [(kept, [1, 2, 3])] * 2 + [(kept, [4])])
        pool.close()
        pool.join()
    del decoded[:]
    items = read(kept, [1, 2, 3, 4])
    assert not decoded
    for share in (items, shares[0] + shares[2], shares[1] + shares[2]):
        assert_right(share, photos, [1, 2, 3, 4])


def test_a_copy_outlives_nothing(photos, folder, decoded):
    kept = PhotoCache(photos, FIT, gib=1)
    copy = pickle.loads(pickle.dumps(kept))
    kept[7]
    copy[7]
    assert len(decoded) == 1
    path = copy._file.path
    del kept
    gc.collect()
    assert not path.exists()
    assert_right([copy[7], copy[8]], photos, [7, 8])
    assert not path.exists()


def test_a_forked_process_leaves_it(photos, folder):
    kept = PhotoCache(photos, FIT, gib=1)

    def drop():
        nonlocal kept
        del kept
        gc.collect()

    process = get_context("fork").Process(target=drop)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert kept._file.path.exists()


class Recorder:
    """A file that notes what is done to it, and writes `share` of what it is given."""

    def __init__(self, share: float = 1):
        self.share, self.calls = share, []

    def seek(self, place: int) -> None:
        self.calls.append(("seek", place))

    def write(self, data) -> int:
        self.calls.append(("write", bytes(data)))
        return int(len(bytes(data)) * self.share)


def test_an_item_is_done_when_all_of_it_is_written(photos, folder, decoded, said):
    kept = PhotoCache(photos, FIT, gib=1)
    image, mask = PhotoCache(photos, FIT, gib=0)[4]
    offset, recorder = 1 + 64 + 4 * item_bytes(FIT.size), Recorder()
    kept._file._write_item(recorder, 4, image, mask)
    pixels = [("write", image.tobytes()), ("write", mask.tobytes())]
    assert recorder.calls == [("seek", offset), *pixels, ("seek", 1 + 4), ("write", cache.DONE)]
    with kept._file.path.open("r+b") as file:  # as a process leaves it that is killed before the last write
        file.seek(offset)
        file.write(bytes(image.size))
    del decoded[:]
    assert_right([kept[4]], photos, [4])
    assert decoded[0] == photos.image_ids[4]
    assert not said


def test_a_short_write_is_a_full_disk(photos, folder):
    kept = PhotoCache(photos, FIT, gib=1)
    recorder = Recorder(share=0.5)
    with pytest.raises(OSError, match="No space left"):
        kept._file._write_item(recorder, 0, *kept[0])
    assert ("write", cache.DONE) not in recorder.calls


def test_a_cut_or_removed_file_does_no_harm(photos, folder, decoded, said):
    kept = PhotoCache(photos, FIT, gib=1)
    kept[63]
    os.truncate(kept._file.path, kept._file.path.stat().st_size - 1)
    assert_right([kept[63]], photos, [63])
    kept._file.path.unlink()
    assert_right(read(kept, [63, 1]), photos, [63, 1])
    assert not said


def test_a_disk_that_fills_up_stops_the_writing_and_is_told_once(photos, folder, decoded, said, monkeypatch):
    kept = PhotoCache(photos, FIT, gib=1)
    kept[0]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.CacheFile, "_write_item", full)
    copy = pickle.loads(pickle.dumps(kept))
    items = [kept[1], copy[2], kept[2], copy[0]]
    monkeypatch.undo()
    assert_right([*items, copy[1]], photos, [1, 2, 2, 0, 1])
    assert len(said) == 1
    assert "No space left on device; photos not in this cache yet are decoded each epoch" in said[0]
    assert copy._file.read(0)
    assert copy._file.read(1) is None


def test_a_full_disk_is_no_cache(photos, folder, said, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=cache.LEFT_FREE + item_bytes(FIT.size))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_right([PhotoCache(photos, FIT, gib=1)[3]], photos, [3])
    assert not list(folder.iterdir())
    assert said == [
        f"{folder}: no cache (1.0 GiB free, 1.0 needed), photos are decoded each epoch; data.cache_gib=0 asks for none"
    ]


def test_what_a_killed_run_left_is_removed_and_what_lives_is_not(photos, folder):
    living = PhotoCache(photos, FIT, gib=1)
    dead, young, foreign = (folder / name for name in ("carvana-dead.cache", "carvana-young.cache", "other.cache"))
    for path in (dead, young, foreign):
        path.write_bytes(b"left")
    old = time.time() - 2 * cache.YOUNG
    for path in (dead, foreign, living._file.path):
        os.utime(path, (old, old))
    newest = PhotoCache(photos, FIT, gib=1)
    assert set(folder.iterdir()) == {young, foreign, living._file.path, newest._file.path}


def make_and_wait(photos: Photos, folder: str, ready) -> None:
    tempfile.tempdir = folder
    kept = PhotoCache(photos, FIT, gib=1)
    kept[0]
    ready.set()
    time.sleep(60)


def test_a_killed_run_leaves_no_lock(photos, folder):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=make_and_wait, args=(photos, str(folder), ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    (path,) = folder.iterdir()
    old = time.time() - 2 * cache.YOUNG
    os.utime(path, (old, old))
    cache.remove_leftovers(folder)
    assert not list(folder.iterdir())
