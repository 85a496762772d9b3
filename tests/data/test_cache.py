"""The cache gives what decoding gives, whoever wrote it, and without room for it everything goes on."""

import gc
import os
import pickle
import resource
import shutil
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from carvana.data import cache
from carvana.data.cache import GIB, PhotoCache
from carvana.data.geometry import Fit
from carvana.data.images import Photos, open_train

FIT, ITEM, FLAGS = Fit((32, 48)), 4 * 32 * 48, 1 + 64  # bytes
FORK = get_context("fork")


@pytest.fixture(scope="module")
def photos(demo) -> Photos:
    return open_train(demo / "input")


@pytest.fixture(autouse=True)
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


def assert_right(items: list, photos: Photos, *indices: int) -> None:
    """Items are what comes without a cache."""
    uncached = PhotoCache(photos, FIT, gib=0)
    for item, index in zip(items, indices, strict=True):
        assert [pixels.dtype for pixels in item] == [np.uint8] * 2
        assert all(map(np.array_equal, item, uncached[index]))


def test_processes_of_a_machine_share_one_file(photos, folder, decoded):
    owner = PhotoCache(photos, FIT, gib=2.5 * ITEM / GIB)
    joined = PhotoCache(photos, FIT, gib=0).join(owner.path)
    assert_right([owner[0], joined[0], joined[1], joined[2]], photos, 0, 0, 1, 2)
    assert [photos.image_ids.index(name) for name in decoded[:3]] == [0, 1, 2]  # the first photo once
    del joined
    gc.collect()
    assert [*folder.iterdir()] == [owner.path]
    assert PhotoCache(photos, FIT, gib=0).join(None).path is None


def test_of_a_disk_that_is_memory_half_of_what_is_free_is_taken(folder, monkeypatch):
    free, used = 2**50, shutil.disk_usage(folder)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: used._replace(free=free))
    partitions = {fstype: [("/", "ext4"), (str(folder), fstype)] for fstype in ("tmpfs", "ext4")}
    for fstype, room in (("ext4", free), ("tmpfs", 1000)):
        mounts = [SimpleNamespace(mountpoint=mount, fstype=kind) for mount, kind in partitions[fstype]]
        monkeypatch.setattr(psutil, "disk_partitions", lambda all, mounts=mounts: mounts)
        assert cache._room(folder / "x") == room


def test_photos_within_the_bound_are_decoded_once(photos, folder, decoded):
    kept = PhotoCache(photos, FIT, gib=2.5 * ITEM / GIB)
    assert (len(kept), kept.image_ids) == (64, photos.image_ids)
    items = [kept[index] for index in (0, 1, 2, 0, 1, 2)]
    assert [photos.image_ids.index(name) for name in decoded] == [0, 1, 2, 2]
    items[0][0][:] = 0  # a caller may write into what it got
    assert_right([kept[0], *items[1:]], photos, 0, 1, 2, 0, 1, 2)
    assert [path.stat().st_size for path in folder.iterdir()] == [1 + 2 + 2 * ITEM]


def test_forked_processes_and_pickled_copies_share_it_and_only_its_maker_removes_it(photos, folder, decoded):
    kept = PhotoCache(photos, FIT, gib=1)
    copy, (path,) = pickle.loads(pickle.dumps(kept)), folder.iterdir()

    def read_and_drop() -> None:
        nonlocal kept
        _ = kept[2]
        del kept
        gc.collect()

    process = FORK.Process(target=read_and_drop)
    process.start()
    process.join()
    items = [kept[2], copy[2]]
    assert (process.exitcode, decoded) == (0, [])
    items += [copy[8], kept[8]]
    assert decoded == [photos.image_ids[8]]
    del kept
    gc.collect()
    assert_right([*items, copy[2]], photos, 2, 2, 8, 8, 2)
    assert not path.exists()


def test_half_an_item_and_a_cut_or_removed_file_do_no_harm(photos, folder, capsys):
    kept, (path,) = PhotoCache(photos, FIT, gib=1), folder.iterdir()
    with path.open("r+b") as half:  # as a process leaves it that is killed before it says that the item is complete
        half.seek(FLAGS + 4 * ITEM)
        half.write(bytes(ITEM))
    assert_right([kept[4], kept[4], kept[63]], photos, 4, 4, 63)
    os.truncate(path, path.stat().st_size - 1)
    assert_right([kept[63]], photos, 63)
    path.unlink()
    assert_right([kept[63], kept[1]], photos, 63, 1)
    assert capsys.readouterr().err == ""


def test_a_disk_that_fills_up_stops_the_writing_and_is_reported_once(photos, decoded, capsys):
    kept = PhotoCache(photos, FIT, gib=1)
    items, copy, limits = [kept[0]], pickle.loads(pickle.dumps(kept)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FLAGS + ITEM + ITEM // 2, limits[1]))  # half of item 1 can be written
    try:
        items += [kept[1], copy[2], kept[2], copy[0]]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    items += [copy[1], kept[1]]
    assert [photos.image_ids.index(name) for name in decoded] == [0, 1, 2, 2, 1, 1]
    assert_right(items, photos, 0, 1, 2, 2, 0, 1, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("No space left on device; photos not in this cache yet are decoded each epoch")


def test_without_room_there_is_no_cache(photos, folder, capsys, monkeypatch):
    items = [PhotoCache(photos, FIT, gib)[3] for gib in (0, 0.9 * ITEM / GIB)]
    assert capsys.readouterr().err == ""
    usage = shutil.disk_usage(folder)._replace(free=cache.LEFT_FREE + ITEM - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_right([*items, PhotoCache(photos, FIT, gib=1)[3]], photos, 3, 3, 3)
    line = f"{folder}: no cache (1.0 GiB free, 1.0 are left so), photos are decoded each epoch; data.cache_gib=0"
    assert (capsys.readouterr().err, list(folder.iterdir())) == (f"{line} asks for none\n", [])


def test_with_little_room_the_first_photos_are_kept(photos, folder, decoded, capsys, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=cache.LEFT_FREE + 2 * ITEM)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    kept = PhotoCache(photos, FIT, gib=1)
    items = [kept[index] for index in (1, 2, 1, 2)]
    assert [photos.image_ids.index(name) for name in decoded] == [1, 2, 2]
    assert_right(items, photos, 1, 2, 1, 2)
    line = f"{folder}: 1.0 GiB free, so 2 of {len(photos.image_ids)} photos are cached\n"
    assert capsys.readouterr().err == line


def test_what_a_killed_run_left_is_removed_and_what_lives_is_not(photos, folder):
    is_made = FORK.Event()
    process = FORK.Process(target=lambda: (PhotoCache(photos, FIT, gib=1), is_made.set(), time.sleep(60)))
    process.start()
    assert is_made.wait(60)
    process.kill()
    process.join()
    (dead,), young, foreign = folder.iterdir(), folder / "carvana-young.cache", folder / "other.cache"
    kept = PhotoCache(photos, FIT, gib=1)
    young.touch(), foreign.touch()
    for path in (dead, foreign, kept.path):
        os.utime(path, (time.time() - 2 * cache.YOUNG,) * 2)
    newer = PhotoCache(photos, FIT, gib=1)
    assert {*folder.iterdir()} == {young, foreign, kept.path, newer.path}
