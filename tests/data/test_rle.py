"""Encoding and decoding are inverse for every mask, and equal to Kaggle's own rows."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from carvana.data.archive import Archive
from carvana.data.decoding import decode_mask
from carvana.data.rle import edges_on_device, encode_tensor, rle_decode, rle_encode, write_runs

GOLDEN = {
    "... ...": "", "### ###": "1 6", "#.. ...": "1 1", "... ..#": "6 1", "#.. ..#": "1 1 6 1", "..# #..": "3 2",
    "#. #.": "1 1 3 1",  # row by row, not column by column
    "........ ..####.. .######. ...##...": "11 4 18 6 28 2",
}  # fmt: skip
REFUSED = {
    "1": "1 numbers do not make pairs", "1 2 4": "3 numbers do not make pairs",
    **dict.fromkeys(["1 x", "1.0 2", "1 +2", "1_0 2", "1\t2", "\uff11 \uff12", "nan", "-1 2"], "whole numbers"),
    "0 2": 'pair 1, "0 2", starts before pixel 1', "1 1 3 0": 'pair 2, "3 0", is empty',
    "4 1 1 1": 'pair 2, "1 1", does not start after', "2 1 2 1": 'pair 2, "2 1", does not start after',
    "1 3 3 1": 'pair 2, "3 1", overlaps',
    **dict.fromkeys(["7 1", "6 2", "1 99999999999999999999", "99999999999999999999 1"], "past the last pixel, 6"),
    "9223372036854775807 9223372036854775807": "past the last pixel",
}  # fmt: skip


def assert_inverse(mask: np.ndarray, rle: str | None = None) -> None:
    """The text is the one given, or that of the kernel everyone copied, correct and slow."""
    pixels = np.concatenate([[False], mask.flatten(), [False]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    rle, tensor = " ".join(map(str, runs)) if rle is None else rle, torch.from_numpy(mask.copy())
    assert rle_encode(mask) == write_runs(edges_on_device(tensor).numpy()) == rle
    assert encode_tensor(tensor) == rle
    decoded = rle_decode(rle, mask.shape)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_golden_and_every_mask_of_two_by_three_and_the_corners_of_a_photo():
    for rows, rle in GOLDEN.items():
        assert_inverse(np.array([[pixel == "#" for pixel in row] for row in rows.split()]), rle)
    for pixels in itertools.product([False, True], repeat=6):
        assert_inverse(np.array(pixels).reshape(2, 3))
    words = [word for word in itertools.product([False, True], repeat=8) if sum(np.diff(word)) <= 1]
    for pair in itertools.product(words, repeat=2):
        assert_inverse(np.array(pair))
    pixels = np.arange(1280 * 1918).reshape(1280, 1918)
    for mask in (pixels < 0, pixels == 0, pixels == pixels.size - 1):
        assert_inverse(mask), assert_inverse(~mask)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)))
def test_any_mask_and_any_view_of_it(mask):
    at_odd_address = np.append(False, mask)[1:].reshape(mask.shape)
    for view in (mask, mask.T, mask[::-1], mask[:, ::-1], mask[::3, ::2], np.asfortranarray(mask), at_odd_address):
        assert_inverse(view)


def test_only_bool_masks_of_two_axes_are_encoded():
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5 % 3
    assert rle_encode(pixels.view(bool)) == rle_encode(pixels > 0)
    for dtype in (np.uint8, np.float32, np.int64):
        with pytest.raises(TypeError, match="bool"):
            rle_encode(pixels.astype(dtype))
    with pytest.raises(ValueError, match="shape"):
        rle_encode(np.zeros((1, 2, 3), bool))


@pytest.mark.parametrize("rle", REFUSED)
def test_what_is_no_mask_is_refused_and_other_ways_to_write_one_are_not(rle):
    with pytest.raises(ValueError, match=REFUSED[rle]):
        rle_decode(rle, (2, 3))
    for text, same in {"1 2 3 2": "1 4", " 1  4 ": "1 4", "01 4": "1 4", " ": ""}.items():
        assert rle_encode(rle_decode(text, (2, 3))) == same


def test_equal_to_the_competitions_own_rows(carvana_data):
    archive = Archive(carvana_data)
    masks, lines = archive.part("train_masks"), archive.read_file("train_masks.csv").decode().splitlines()
    for name, rle in (line.split(",") for line in lines[1:801]):
        mask_name = f"{Path(name).stem}_mask.gif"
        assert_inverse(decode_mask(masks.read(mask_name), mask_name), rle)
