"""Runs found on a device are those of the encoder; each photo is read once and predicted in order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from carvana.device import Device
from carvana.edges import encode_tensor, find_edges
from carvana.geometry import Fit
from carvana.images import open_test
from carvana.inference import Member, predict_photos, predict_runs
from carvana.rle import rle_encode, write_runs

CPU = Device(torch.device("cpu"))
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def assert_same_runs(mask: np.ndarray) -> None:
    tensor = torch.from_numpy(np.ascontiguousarray(mask))
    assert write_runs(find_edges(tensor).numpy()) == rle_encode(mask)
    for device in DEVICES:
        assert encode_tensor(tensor.to(device)) == rle_encode(mask)


@settings(max_examples=300)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)))
def test_runs_of_any_mask(mask):
    assert_same_runs(mask)


@pytest.mark.parametrize("size", [(1280, 1918), (3, 7), (1, 1), (0, 5)])
def test_runs_of_empty_and_full_masks_and_of_the_first_and_last_pixel(size):
    assert_same_runs(np.zeros(size, bool))
    assert_same_runs(np.ones(size, bool))
    for pixel in {0, -1} if np.prod(size) else ():
        mask = np.zeros(size, bool)
        mask.flat[pixel] = True
        assert_same_runs(mask)
        assert_same_runs(~mask)


def test_a_mask_that_is_a_view():
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    assert encode_tensor(mask.T) == rle_encode(mask.numpy().T)
    assert write_runs(find_edges(mask.T).numpy()) == rle_encode(mask.numpy().T)


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(1, keepdim=True) / 255


def darkness(images: torch.Tensor) -> torch.Tensor:
    return 1 - brightness(images)


MEMBERS = [Member(Fit((32, 48)), brightness, 2.0), Member(Fit((32, 64)), brightness), Member(Fit((32, 48)), darkness)]


def test_runs_are_those_of_the_probabilities(demo):
    photos = open_test(demo / "input")
    probs = list(predict_photos(MEMBERS, photos, photos.image_ids, CPU, num_workers=0))
    runs = list(predict_runs(MEMBERS, photos, photos.image_ids, CPU, 0.5, batch_size=3, num_workers=1))
    assert [row.image_id for row in runs] == [p.image_id for p in probs] == photos.image_ids
    for row, (_, some, _) in zip(runs, probs, strict=True):
        assert row.size == some.shape == (96, 144)
        assert row.rle == rle_encode((some >= 0.5).numpy())


def test_members_of_one_fit_are_weighed(demo):
    photos = open_test(demo / "input")
    chosen = photos.image_ids[:2]
    alone = [[p.probs for p in predict_photos([m], photos, chosen, CPU, num_workers=0)] for m in MEMBERS]
    for prediction, *each in zip(predict_photos(MEMBERS, photos, chosen, CPU, num_workers=0), *alone, strict=True):
        torch.testing.assert_close(prediction.probs, 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2])


def test_each_photo_is_decoded_once(demo, monkeypatch):
    from carvana import images

    decoded, decode = [], images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda data, *more: (decoded.append(data), decode(data, *more))[1])
    photos = open_test(demo / "input")
    list(predict_runs(MEMBERS, photos, photos.image_ids, CPU, 0.5, num_workers=0))
    assert len(decoded) == len(photos.image_ids) == 16
