"""Holes are what a car encloses by 8 neighbours, parts what is joined by them."""

import numpy as np
import pytest

from carvana.prediction.postprocess import AS_IT_IS, PostProcess, part_sizes


def picture(text: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in line] for line in text.split()])


RING, FILLED = picture("...... .####. .#..#. .####. ......"), picture("...... .####. .####. .####. ......")
DIAMOND = picture("..... ..#.. .#.#. ..#.. .....")  # closed by diagonals
PARTS = picture("##...# ##.... .....# ....#.")  # of 4, 1 and, joined by a corner, 2 pixels
EMPTY = np.zeros((4, 5), bool)


@pytest.mark.parametrize(("mend", "mask", "expected"), [
    (PostProcess(holes=2), RING, RING), (PostProcess(holes=3), RING, FILLED), (AS_IT_IS, RING, RING),
    (PostProcess(holes=2), DIAMOND, picture("..... ..#.. .###. ..#.. .....")),
    *[(PostProcess(holes=100), mask, mask) for mask in (RING[2:], RING[:3], RING.T[2:], RING.T[:3])],  # open
    (PostProcess(parts=2), PARTS, picture("##.... ##.... .....# ....#.")),
    (PostProcess(parts=3), PARTS, picture("##.... ##.... ...... ......")),
    (PostProcess(parts=5), PARTS, np.zeros_like(PARTS)),
    (PostProcess(holes=3, parts=12), RING, FILLED),  # with its hole filled, it is large enough
    *[(PostProcess(holes=10, parts=10), mask, mask) for mask in (EMPTY, ~EMPTY)],
])  # fmt: skip
def test_what_is_smaller_than_the_limit_is_mended(mend, mask, expected):
    mended = mend(mask)
    assert mended.dtype == bool
    assert np.array_equal(mended, expected)
    assert (part_sizes(PARTS), part_sizes(EMPTY)) == ([4, 1, 2], [])
    assert PostProcess(holes=3, parts=12).scaled(0.5) == PostProcess(holes=2, parts=6)
