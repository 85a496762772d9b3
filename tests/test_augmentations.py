import numpy as np
import pytest

from carvana.augmentations import AUGMENTATIONS, GrayCar, Shade, augment, build_augmentation
from carvana.errors import InputError

MARK = np.zeros((64, 96), np.uint8)
MARK[20:40, 10:50] = 255
IMAGE = np.dstack([MARK, MARK, MARK])
COLOURFUL = np.full((64, 96, 3), (10, 30, 60), np.uint8)
COLOURFUL[MARK > 0] = (250, 190, 120)


def drawn(name: str, seed: list[int], image: np.ndarray = IMAGE, mask: np.ndarray = MARK) -> tuple:
    return augment(build_augmentation(name), image, mask, np.random.default_rng(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("picture", [IMAGE, COLOURFUL], ids=["white car", "coloured car"])
def test_the_mask_follows_the_photo(name, picture):
    for seed in range(40):
        image, mask = drawn(name, [seed], picture)
        assert image.shape == IMAGE.shape
        assert mask.shape == MARK.shape
        assert image.dtype == mask.dtype == np.uint8
        bright = image.mean(axis=2)
        car, studio = bright[mask == 255], bright[mask == 0]
        middle = (np.median(car) + np.median(studio)) / 2
        assert ((bright > middle) == (mask > 127)).mean() > 0.97


@pytest.mark.parametrize("name", ["light", "medium", "winner"])
def test_the_seed_decides_and_nothing_else(name):
    one, other = AUGMENTATIONS[name](), AUGMENTATIONS[name]()
    seeds = [[0, epoch, 3] for epoch in range(30)]  # so many that each rare transform occurs
    first = [augment(one, COLOURFUL, MARK, np.random.default_rng(seed)) for seed in seeds]
    again = [augment(other, COLOURFUL, MARK, np.random.default_rng(seed)) for seed in reversed(seeds)][::-1]
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
        image, mask = drawn("light", [seed], colourful, colourful[..., 0])
        gray = (image.max(axis=2) - image.min(axis=2)).max() == 0
        kinds.add((gray, bool(mask[:, :24].sum() < mask[:, 24:].sum())))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("name", ["light", "medium", "winner"])
def test_coverage_stays_soft_when_a_mask_is_rotated(name):
    values = set()
    for seed in range(20):
        values |= set(np.unique(drawn(name, [seed])[1]))
    assert len(values) > 10


def test_none_changes_nothing():
    image, mask = drawn("none", [0])
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(mask, MARK)


def test_a_gray_car_stands_in_a_coloured_studio():
    image = GrayCar(p=1)(image=COLOURFUL, mask=MARK)["image"]
    colour = image.max(axis=2).astype(int) - image.min(axis=2)
    assert colour[MARK > 0].max() == 0
    assert np.abs(image[MARK == 0].astype(int) - COLOURFUL[MARK == 0]).max() <= 1


def test_shade_darkens_smoothly_and_by_at_most_40_percent():
    white = np.full((64, 96, 3), 250, np.uint8)
    image = Shade(p=1)(image=white)["image"].astype(int)
    assert 0.6 * 250 - 1 <= image.min() < image.max() - 10
    assert image.max() <= 250
    assert np.abs(np.diff(image, axis=0)).max() <= 5


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"data\.augmentation=ligth: choose from none, hflip, light, medium, winner"):
        build_augmentation("ligth")
