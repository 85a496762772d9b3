import numpy as np
import pytest

from carvana.augmentations import AUGMENTATIONS, augment

MARK = np.zeros((64, 96), np.uint8)
MARK[20:40, 10:50] = 255
IMAGE = np.dstack([MARK, MARK, MARK])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_mask_follows_the_photo(name):
    augmentation = AUGMENTATIONS[name]()
    for seed in range(20):
        image, mask = augment(augmentation, IMAGE, MARK, [seed])
        assert image.shape == IMAGE.shape
        assert image.dtype == mask.dtype == np.uint8
        bright = image.mean(axis=2) > (int(image.max()) + int(image.min())) / 2
        assert (bright == (mask > 127)).mean() > 0.97


def test_the_seed_decides_and_nothing_else():
    one, other = AUGMENTATIONS["light"](), AUGMENTATIONS["light"]()
    first = [augment(one, IMAGE, MARK, [0, epoch, 3]) for epoch in range(5)]
    again = [augment(other, IMAGE, MARK, [0, epoch, 3]) for epoch in reversed(range(5))][::-1]
    for (image, mask), (same_image, same_mask) in zip(first, again, strict=True):
        assert np.array_equal(image, same_image)
        assert np.array_equal(mask, same_mask)
    assert len({mask.tobytes() for _, mask in first}) > 1


def test_transforms_are_drawn_independently():
    """Gray and flipped photos, gray and unflipped ones: with one seed for each transform only one kind would occur."""
    colourful = np.zeros((32, 48, 3), np.uint8)
    colourful[:, :12] = (200, 30, 90)
    kinds = set()
    for seed in range(300):
        image, mask = augment(AUGMENTATIONS["light"](), colourful, colourful[..., 0], [seed])
        gray = (image.max(axis=2) - image.min(axis=2)).max() == 0
        kinds.add((gray, bool(mask[:, :24].sum() < mask[:, 24:].sum())))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_coverage_stays_soft_when_a_mask_is_rotated():
    values = set()
    for seed in range(20):
        values |= set(np.unique(augment(AUGMENTATIONS["light"](), IMAGE, MARK, [seed])[1]))
    assert len(values) > 10


def test_none_changes_nothing():
    image, mask = augment(AUGMENTATIONS["none"](), IMAGE, MARK, [0])
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(mask, MARK)
