"""Soft masks: what a file of them keeps of probabilities, and that it is whole or not there."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from carvana.data.labels import SOFT, Source
from carvana.data.soft import SoftMasks, decode_soft, encode_soft, read_soft, write_soft
from carvana.errors import InputError


def smooth(size: tuple[int, int]) -> torch.Tensor:
    """A map with edges that are some pixels wide."""
    noise = np.random.default_rng(0).normal(size=size)
    return torch.from_numpy(cv2.GaussianBlur(noise, (0, 0), 5) * 30).sigmoid().float()


@pytest.mark.parametrize("size", [(96, 144), (95, 143)])
def test_probabilities_come_back_at_photo_size(size):
    probs = smooth(size)
    soft = decode_soft(encode_soft(probs), size)
    assert (soft.shape, soft.dtype) == (size, np.uint8)
    errors = soft / 255 - probs.numpy()
    assert np.abs(errors).max() < 0.06
    assert np.abs(errors).mean() < 0.01
    assert abs(errors.mean()) < 1e-3
    for value in (0, 0.2, 1):
        assert (decode_soft(encode_soft(torch.full(size, value)), size) == round(255 * value)).all()


def test_a_file_is_whole_or_not_there_and_is_read_in_its_order_or_by_name(tmp_path):
    path, other = tmp_path / "soft.zip", tmp_path / "other.zip"
    masks = [("b.c_02.png", encode_soft(smooth((8, 12)))), ("a_01.png", encode_soft(torch.ones(8, 12)))]
    write_soft(path, masks)
    write_soft(other, iter(masks))
    assert path.read_bytes() == other.read_bytes()
    assert list(read_soft(path)) == masks
    soft = SoftMasks(Source(path, SOFT, (8, 12), "digest", [], False))
    assert list(soft.image_ids) == ["a_01", "b.c_02"]
    assert (pickle.loads(pickle.dumps(soft)).mask("a_01") == 255).all()  # as loader processes get it
    with pytest.raises(ZeroDivisionError):
        write_soft(path, ((name, 1 / 0) for name, _ in masks))
    assert sorted(tmp_path.iterdir()) == [other, path]
    assert list(read_soft(path)) == masks
    path.write_bytes(other.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"soft\.zip: missing, cut or corrupt"):
        list(read_soft(path))
