import numpy as np
import pytest

from carvana.postprocess import PostProcess, drop_parts, fill_holes


def picture(text: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in line] for line in text.split()])


RING = picture("""
......
.####.
.#..#.
.####.
......
""")


def test_a_hole_smaller_than_the_limit_is_filled():
    filled = RING.copy()
    filled[2, 2:4] = True
    assert np.array_equal(fill_holes(RING, 3), filled)
    assert np.array_equal(fill_holes(RING, 2), RING)


def test_a_hole_that_touches_the_border_is_no_hole():
    for mask in (RING[2:], RING[:3], RING.T[2:], RING.T[:3]):
        assert np.array_equal(fill_holes(mask, 100), mask)


def test_a_diagonal_closes_a_hole():
    diamond = picture("..... ..#.. .#.#. ..#.. .....")
    assert fill_holes(diamond, 2)[2, 2]


def test_parts_below_the_limit_are_dropped():
    mask = picture("##...# ##.... .....# ....#.")
    large = picture("##.... ##.... ...... ......")
    assert np.array_equal(drop_parts(mask, 3), large)
    assert np.array_equal(drop_parts(mask, 2), large | picture("...... ...... .....# ....#."))  # joined by a corner
    assert not drop_parts(mask, 5).any()


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks_stay(value):
    mask = np.full((4, 5), value)
    result = PostProcess(holes=100, parts=10)(mask)
    assert result.dtype == bool
    assert np.array_equal(result, mask)


def test_off_by_default_and_in_order():
    assert np.array_equal(PostProcess()(RING), RING)
    assert PostProcess(holes=3, parts=12)(RING).sum() == 12  # with its hole filled, the ring is large enough
