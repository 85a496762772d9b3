import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from carvana.augmentations import augment, build_augmentation
from carvana.cache import PhotoCache
from carvana.dataset import PhotoSet, TrainSet, photo_loader, to_tensor
from carvana.geometry import Fit
from carvana.images import open_train

FIT = Fit((32, 48))


@pytest.fixture
def source(demo) -> PhotoCache:
    return PhotoCache(open_train(demo / "input"), FIT, gib=0)


def same(one: tuple, other: tuple) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


def test_training_items_are_uint8_at_network_size_and_soft(source):
    image, mask, index = TrainSet(source, "none", seed=0, epoch=0)[3]
    assert (image.shape, mask.shape, index) == ((3, 32, 48), (1, 32, 48), 3)
    assert image.dtype == mask.dtype == torch.uint8
    assert len(mask.unique()) == 10  # ninths of 255: coverage by nine photo pixels each
    truth = source.photos.mask(source.image_ids[3])
    assert abs(mask.float().mean().item() / 255 - truth.mean()) < 0.01


def test_an_item_depends_on_seed_epoch_and_index_alone(source):
    def epoch(number: int, **options) -> list[torch.Tensor]:
        dataset = TrainSet(source, "light", seed=0, epoch=number)
        return [torch.cat(parts) for parts in zip(*DataLoader(dataset, 8, **options), strict=True)]

    images, masks, indices = epoch(0)
    for options in ({"num_workers": 2}, {"num_workers": 1, "multiprocessing_context": "spawn"}):
        assert same((images, masks, 0), (*epoch(0, **options)[:2], 0))
    assert not torch.equal(images, epoch(1)[0])
    assert indices.dtype == torch.int64
    assert indices.tolist() == list(range(64))


def test_the_stream_of_random_numbers_is_as_documented(source):
    for order in (None, [5]):
        image, mask, index = TrainSet(source, "light", 7, 2, order=order)[5 if order is None else 0]
        generator = np.random.default_rng([7, 2, 5])
        expected_image, expected_mask = augment(build_augmentation("light"), *source[5], generator)
        assert index == 5
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected_image)
        assert np.array_equal(mask[0].numpy(), expected_mask)


def test_order_chooses_and_repeats_photos(source):
    whole = TrainSet(source, "light", 0, 0)
    replay = TrainSet(source, "light", 0, 0, order=[9, 2, 9, 9])
    assert len(replay) == 4
    assert [replay[item][2] for item in range(4)] == [9, 2, 9, 9]
    assert same(replay[0], whole[9])
    assert same(replay[1], whole[2])
    assert not same(replay[2], replay[0])
    assert not same(replay[3], replay[2])
    other = TrainSet(source, "light", 0, 0, order=np.array([9, 9, 9, 2]))  # as numpy gives it, in another order
    assert same(other[2], replay[3])
    assert same(other[3], replay[1])


def test_a_crop_is_a_window_of_photo_and_mask(source):
    whole, _, _ = TrainSet(source, "none", 0, 0)[4]
    places = set()
    for epoch in range(60):
        crop = TrainSet(source, "none", 0, epoch, crop=(30, 45))
        image, mask, _ = crop[4]
        assert (image.shape, mask.shape) == ((3, 30, 45), (1, 30, 45))
        assert same(crop[4], (image, mask, 4))
        places |= {
            (top, left)
            for top in range(3)
            for left in range(4)
            if torch.equal(image, whole[:, top : top + 30, left : left + 45])
            and np.array_equal(mask[0], source[4][1][top : top + 30, left : left + 45])
        }
    assert places == {(top, left) for top in range(3) for left in range(4)}


def test_a_crop_of_full_size_is_the_photo(source):
    assert same(TrainSet(source, "none", 0, 0, crop=(32, 48))[4], TrainSet(source, "none", 0, 0)[4])


@pytest.mark.parametrize("name", ["medium", "winner"])
def test_crops_are_augmented(source, name):
    image, mask, _ = TrainSet(source, name, 0, 0, crop=(16, 24))[4]
    assert (image.shape, mask.shape) == ((3, 16, 24), (1, 16, 24))


def test_photos_come_whole_and_in_order(demo):
    photos = open_train(demo / "input")
    chosen, fits = photos.image_ids[5:15], [FIT, Fit((96, 160), "pad")]
    batches = list(photo_loader(PhotoSet(photos, chosen, fits, masks=True), 4, num_workers=1, pin_memory=False))
    assert [image_id for image_ids, *_ in batches for image_id in image_ids] == chosen  # the last two as well
    image_ids, images, sizes, masks = batches[0]
    assert [tuple(batch.shape) for batch in images] == [(4, 3, 32, 48), (4, 3, 96, 160)]
    assert sizes == [(96, 144)] * 4
    assert np.array_equal(masks[2].numpy(), photos.mask(image_ids[2]))


def test_validation_sees_what_training_sees(source):
    """Both shrink the photo from its half; photo size and mask are reported whole."""
    photos = source.photos
    image_id, (image,), size, mask = PhotoSet(photos, photos.image_ids, [FIT], masks=True)[3]
    assert torch.equal(image, TrainSet(source, "none", 0, 0)[3][0])
    assert image_id == photos.image_ids[3]
    assert size == mask.shape == (96, 144)
    assert not np.array_equal(image.permute(1, 2, 0).numpy(), FIT.image(photos.image(image_id)))


def test_to_tensor_moves_no_byte():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 4)
    assert np.shares_memory(tensor.numpy(), image)
