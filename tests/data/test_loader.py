"""Augmentations and training items depend on the seed alone; whole photos come in order, and the queue is bounded."""

import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from carvana.data.augmentations import AUGMENTATIONS, GrayCar, Shade, augment, build_augmentation
from carvana.data.cache import PhotoCache
from carvana.data.dataset import TrainSet, collate
from carvana.data.geometry import Fit
from carvana.data.images import open_train
from carvana.data.loader import Loading, load_photos, map_in_threads, to_tensor
from carvana.errors import InputError

MASK = np.zeros((64, 96), np.uint8)
MASK[20:40, 10:50] = 255
COLOURED = np.where(MASK[..., None] > 0, np.uint8((250, 190, 120)), np.uint8((10, 30, 60)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("photo", [np.dstack([MASK] * 3), COLOURED], ids=["white car", "coloured car"])
def test_the_mask_follows_the_photo_and_the_seed_alone_decides(name, photo):
    augmentation, same = build_augmentation(name), build_augmentation(name)
    seeds = [[0, epoch, 3] for epoch in range(30)]  # so many that each rare transform occurs
    first = [augment(augmentation, photo, MASK, np.random.default_rng(seed)) for seed in seeds]
    again = [augment(same, photo, MASK, np.random.default_rng(seed)) for seed in reversed(seeds)][::-1]
    for (image, mask), repeated in zip(first, again, strict=True):
        assert (image.shape, mask.shape, image.dtype, mask.dtype) == (photo.shape, MASK.shape, np.uint8, np.uint8)
        brightness = image.mean(axis=2)
        middle = (np.median(brightness[mask == 255]) + np.median(brightness[mask == 0])) / 2
        assert ((brightness > middle) == (mask > 127)).mean() > 0.97
        assert all(map(np.array_equal, (image, mask), repeated))
        assert name != "none" or all(map(np.array_equal, (image, mask), (photo, MASK)))
    assert (len(np.unique([mask for _, mask in first])) > 10) == (name not in ("none", "hflip"))  # rotated, it is soft


def test_transforms_are_drawn_independently_and_an_unknown_set_is_refused():
    """Gray and flipped photos, gray and unflipped ones: with one seed for each transform only one kind would occur."""
    photo, kinds, light = np.zeros((32, 48, 3), np.uint8), set(), build_augmentation("light")
    photo[:, :12] = (200, 30, 90)
    for seed in range(100):
        image, mask = augment(light, photo, photo[..., 0], np.random.default_rng(seed))
        kinds.add((bool(np.ptp(image, axis=2).any()), bool(mask[:, :24].sum() < mask[:, 24:].sum())))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    with pytest.raises(InputError, match=r"data\.augmentation=ligth: choose from none, hflip, light, medium, winner"):
        build_augmentation("ligth")


def test_a_gray_car_stands_in_a_coloured_studio_and_shade_darkens_smoothly_by_at_most_40_percent():
    image = GrayCar(p=1)(image=COLOURED, mask=MASK)["image"]
    assert np.ptp(image, axis=2)[MASK > 0].max() == 0
    assert np.abs(image[MASK == 0].astype(int) - COLOURED[MASK == 0]).max() <= 1
    image = Shade(p=1)(image=np.full((64, 96, 3), 250, np.uint8))["image"].astype(int)
    assert 0.6 * 250 - 1 <= image.min() < image.max() - 10 <= 240
    assert np.abs(np.diff(image, axis=0)).max() <= 5


@pytest.fixture(scope="module")
def source(demo) -> PhotoCache:
    return PhotoCache(open_train(demo / "input"), Fit((32, 48)), gib=0)


def equal(item: tuple, other: tuple) -> bool:
    return all(map(torch.equal, item, other))


def test_a_training_item_depends_on_seed_epoch_and_index_alone(source):
    image, mask = TrainSet(source, "none", seed=0, epoch=0)[3]
    assert (image.shape, mask.shape, image.dtype, mask.dtype) == ((3, 32, 48), (1, 32, 48), torch.uint8, torch.uint8)
    assert len(mask.unique()) == 10  # ninths of 255: coverage by nine photo pixels each
    assert abs(mask.float().mean().item() / 255 - source.photos.mask(source.image_ids[3]).mean()) < 0.01
    dataset = TrainSet(source, "light", seed=7, epoch=2)
    batches = [*DataLoader(dataset, 8, num_workers=2, collate_fn=collate)]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)
    in_processes = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    for index in (63, 5, 5):
        assert equal(dataset[index], [part[index] for part in in_processes])
        image, mask = augment(build_augmentation("light"), *source[index], np.random.default_rng([7, 2, index]))
        assert equal(dataset[index], (to_tensor(image), torch.from_numpy(mask)[None]))
    for seed, epoch in ((7, 3), (8, 2)):
        assert not equal(dataset[5], TrainSet(source, "light", seed, epoch)[5])


def test_a_crop_is_a_window_of_photo_and_mask(source):
    (whole, coverage), places = TrainSet(source, "none", 0, 0)[4], set()
    for epoch in range(60):
        crop = TrainSet(source, "none", 0, epoch, crop=(30, 45))[4]
        for top, left in np.ndindex(3, 4):
            window = slice(top, top + 30), slice(left, left + 45)
            if equal(crop, (whole[:, *window], coverage[:, *window])):
                places.add((top, left))
    assert places == set(np.ndindex(3, 4))
    assert equal(TrainSet(source, "none", 0, 0, crop=(32, 48))[4], (whole, coverage))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_whole_photos_have_the_pixels_that_training_gets(source, num_workers):
    photos, fits = source.photos, [source.fit, Fit((96, 160), "pad")]
    image_ids, options = photos.image_ids[5:11], (fits, torch.device("cpu"), Loading(4, num_workers))
    first, last = load_photos(photos, image_ids, *options, masks=True)
    assert (first.image_ids, last.image_ids, last.sizes) == (image_ids[:4], image_ids[4:], [(96, 144)] * 2)
    for place, image_id in enumerate(last.image_ids):
        images, _ = photos.fitted(image_id, fits)
        assert equal([last.images[fit][place] for fit in fits], [to_tensor(image) for image in images])
        assert np.array_equal(last.masks[place].numpy(), photos.mask(image_id))
        assert torch.equal(last.images[fits[0]][place], TrainSet(source, "none", 0, 0)[9 + place][0])
    assert next(load_photos(photos, image_ids[:1], *options)).masks == [None]


def test_a_mask_of_another_size_than_its_photo_is_named(source, monkeypatch):
    photos = source.photos
    monkeypatch.setattr(photos, "mask", lambda image_id: np.zeros((96, 145), bool))
    words = (
        rf"{photos.image_ids[0]}_mask\.gif: \(height, width\) is \(96, 145\), its photo's is \(96, 144\); replace it"
    )
    with pytest.raises(InputError, match=words):
        next(load_photos(photos, photos.image_ids[:1], [source.fit], torch.device("cpu"), Loading(), masks=True))


def test_threads_keep_the_order_and_never_run_ahead_of_the_queue():
    second_is_done, taken = threading.Event(), []

    def wait_for_the_second(number: int) -> tuple[int, threading.Thread]:
        if number:
            second_is_done.set()
        return number if second_is_done.wait(10) else None, threading.current_thread()

    results = map_in_threads(wait_for_the_second, (taken.append(n) or n for n in range(8)), threads=2, waiting=3)
    assert (next(results)[0], taken) == (0, [0, 1, 2])
    numbers, threads = zip(*results, strict=True)
    assert numbers == tuple(range(1, 8))
    assert threading.current_thread() not in threads
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 / number, [1, 0, 1], threads=2, waiting=2))
