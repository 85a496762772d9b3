"""Encoding and decoding are inverse for every mask, and equal to Kaggle's own rows."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from carvana.archive import Archive
from carvana.images import decode_mask
from carvana.rle import parse_rle, rle_decode, rle_encode

ROWS = 800
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40))


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def encode_as_kaggle_does(mask: np.ndarray) -> str:
    """The kernel everyone copied: correct and slow."""
    pixels = np.concatenate([[False], mask.flatten(), [False]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def assert_inverse(mask: np.ndarray) -> None:
    rle = rle_encode(mask)
    assert rle == encode_as_kaggle_does(mask)
    decoded = rle_decode(rle, mask.shape)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("mask", "rle"),
    [
        (mask_of("...", "..."), ""),
        (mask_of("###", "###"), "1 6"),
        (mask_of("#..", "..."), "1 1"),
        (mask_of("...", "..#"), "6 1"),
        (mask_of("#..", "..#"), "1 1 6 1"),
        (mask_of("..#", "#.."), "3 2"),
        (mask_of("#.#", ".#."), "1 1 3 1 5 1"),
        (mask_of("........", "..####..", ".######.", "...##..."), "11 4 18 6 28 2"),
    ],
)
def test_golden(mask, rle):
    assert rle_encode(mask) == rle
    np.testing.assert_array_equal(rle_decode(rle, mask.shape), mask)


def test_runs_go_row_by_row_not_column_by_column():
    top_row = mask_of("##", "..")
    assert rle_encode(top_row) == "1 2"
    assert rle_encode(top_row.T) == "1 1 3 1"
    np.testing.assert_array_equal(rle_decode("1 2", (2, 2)), top_row)


def test_every_mask_of_two_by_three():
    for pixels in itertools.product([False, True], repeat=6):
        assert_inverse(np.array(pixels).reshape(2, 3))


def test_every_pair_of_eight_pixel_words_that_begin_or_end_with_a_run():
    words = [word for word in itertools.product([False, True], repeat=8) if sum(np.diff(word)) <= 2]
    for pair in itertools.product(words, repeat=2):
        assert_inverse(np.array(pair))


@settings(max_examples=300)
@given(MASKS)
def test_any_mask(mask):
    assert_inverse(mask)


@settings(max_examples=100)
@given(MASKS, st.integers(1, 3), st.integers(1, 3))
def test_any_view_of_a_mask(mask, rows, columns):
    for view in (mask.T, mask[::-1], mask[:, ::-1], mask[::rows, ::columns], np.asfortranarray(mask)):
        assert_inverse(view)


@pytest.mark.parametrize("size", [(1280, 1918), (3, 7), (8, 8), (1, 1), (0, 5)])
def test_empty_full_first_and_last_pixel(size):
    assert_inverse(np.zeros(size, bool))
    assert_inverse(np.ones(size, bool))
    for pixel in {0, -1} if np.prod(size) else ():
        mask = np.zeros(size, bool)
        mask.flat[pixel] = True
        assert_inverse(mask)
        assert_inverse(~mask)


@pytest.mark.parametrize("period", [2, 3, 4, 8, 16])
def test_stripes_which_repeat_within_eight_pixels(period):
    assert_inverse(np.arange(64 * 48).reshape(64, 48) % period < period // 2)


def test_bytes_other_than_one_seen_as_bool():
    pixels = np.random.default_rng(0).choice(np.array([0, 0, 0, 1, 2, 255], np.uint8), (64, 80))
    assert rle_encode(pixels.view(bool)) == rle_encode(pixels > 0)


def test_a_mask_that_starts_at_an_odd_address():
    mask = np.random.default_rng(0).random(8 * 33 + 1) < 0.5
    assert_inverse(mask[1:].reshape(8, 33))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_only_bool_masks_are_encoded(dtype):
    with pytest.raises(TypeError, match="bool"):
        rle_encode(np.zeros((2, 3), dtype))


def test_only_one_mask_is_encoded():
    with pytest.raises(ValueError, match="shape"):
        rle_encode(np.zeros((1, 2, 3), bool))


@pytest.mark.parametrize(
    ("rle", "fault"),
    [
        ("1", "1 numbers do not make pairs"),
        ("1 2 4", "3 numbers do not make pairs"),
        ("1 x", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("1 +2", "whole numbers"),
        ("1_0 2", "whole numbers"),
        ("1\t2", "whole numbers"),
        ("\uff11 \uff12", "whole numbers"),
        ("nan", "whole numbers"),
        ("-1 2", "whole numbers"),
        ("0 2", 'pair 1, "0 2", starts before pixel 1'),
        ("1 1 3 0", 'pair 2, "3 0", is empty'),
        ("4 1 1 1", 'pair 2, "1 1", does not start after'),
        ("2 1 2 1", 'pair 2, "2 1", does not start after'),
        ("1 3 3 1", 'pair 2, "3 1", overlaps'),
        ("7 1", "past the last pixel, 6"),
        ("6 2", "past the last pixel, 6"),
        ("1 99999999999999999999", "past the last pixel"),
        ("99999999999999999999 1", "past the last pixel"),
        ("9223372036854775807 9223372036854775807", "past the last pixel"),
    ],
)
def test_what_is_no_mask_is_refused(rle, fault):
    with pytest.raises(ValueError, match=fault):
        rle_decode(rle, (2, 3))


@pytest.mark.parametrize("rle", ["1 2 3 2", " 1  4 ", "01 4"])
def test_other_ways_to_write_a_mask(rle):
    assert rle_encode(rle_decode(rle, (2, 3))) == "1 4"


@pytest.mark.parametrize("rle", ["", " "])
def test_no_runs(rle):
    assert not rle_decode(rle, (2, 3)).any()


def test_parsed_runs():
    starts, lengths = parse_rle("3 2 9 1", 9)
    assert (starts.tolist(), lengths.tolist()) == ([3, 9], [2, 1])
    assert starts.dtype == lengths.dtype == np.int64


def test_equal_to_the_competitions_own_rows(carvana_data):
    archive = Archive(carvana_data)
    masks = archive.part("train_masks")
    lines = archive.read_file("train_masks.csv").decode().splitlines()[1 : ROWS + 1]
    for name, rle in (line.split(",") for line in lines):
        mask_name = f"{Path(name).stem}_mask.gif"
        mask = decode_mask(masks.read(mask_name), mask_name)
        assert rle_encode(mask) == rle
        np.testing.assert_array_equal(rle_decode(rle, mask.shape), mask)
