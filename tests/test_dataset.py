import numpy as np
import torch
from torch.utils.data import DataLoader

from carvana.dataset import PhotoSet, TrainSet, photo_loader, to_tensor
from carvana.geometry import Fit
from carvana.images import open_train

FIT = Fit((32, 48))


def test_training_items_are_uint8_at_network_size_and_soft(demo):
    dataset = TrainSet(open_train(demo / "input"), FIT, "none", seed=0, epoch=0)
    image, mask = dataset[3]
    assert (image.shape, mask.shape) == ((3, 32, 48), (1, 32, 48))
    assert image.dtype == mask.dtype == torch.uint8
    assert len(mask.unique()) == 10  # ninths of 255: coverage by nine photo pixels each
    truth = dataset.photos.mask(dataset.photos.image_ids[3])
    assert abs(mask.float().mean().item() / 255 - truth.mean()) < 0.01


def test_an_item_depends_on_seed_epoch_and_index_alone(demo):
    photos = open_train(demo / "input")

    def epoch(number: int, num_workers: int = 0) -> torch.Tensor:
        dataset = TrainSet(photos, FIT, "light", seed=0, epoch=number)
        return torch.cat([images for images, _ in DataLoader(dataset, 8, num_workers=num_workers)])

    assert torch.equal(epoch(0), epoch(0, num_workers=2))
    assert not torch.equal(epoch(0), epoch(1))


def test_photos_come_whole_and_in_order(demo):
    photos = open_train(demo / "input")
    chosen, fits = photos.image_ids[5:15], [FIT, Fit((96, 160), "pad")]
    batches = list(photo_loader(PhotoSet(photos, chosen, fits, masks=True), 4, num_workers=1, pin_memory=False))
    assert [image_id for image_ids, *_ in batches for image_id in image_ids] == chosen  # the last two as well
    image_ids, images, sizes, masks = batches[0]
    assert [tuple(batch.shape) for batch in images] == [(4, 3, 32, 48), (4, 3, 96, 160)]
    assert sizes == [(96, 144)] * 4
    assert np.array_equal(masks[2].numpy(), photos.mask(image_ids[2]))


def test_to_tensor_moves_no_byte():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 4)
    assert np.shares_memory(tensor.numpy(), image)
