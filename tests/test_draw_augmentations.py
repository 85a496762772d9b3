"""The contact sheet is one picture, a block for each set; what cannot be drawn ends in one line."""

import cv2
import pytest
from conftest import run_script

from carvana.augmentations import AUGMENTATIONS

TILE = (213 + 2, 320 + 2)  # 64x96 at a width of 320, and the gap
TITLE = 28


def draw(demo, output, *options, **settings):
    few_and_small = ["--count", 2, "--draws", 3, "--size", "64x96"]
    arguments = ["--input", demo / "input", "--output", output, *few_and_small, *options]
    return run_script("draw_augmentations.py", *arguments, **settings)


def test_all_sets(demo, tmp_path):
    result = draw(demo, tmp_path)
    path = tmp_path / "augmentations.jpg"
    assert result.stdout == f"{path}: 2 photos, 3 draws of {', '.join(AUGMENTATIONS)}\n"
    assert cv2.imread(str(path)).shape == (len(AUGMENTATIONS) * (TITLE + 2 * TILE[0]), 3 * TILE[1], 3)
    assert list(tmp_path.iterdir()) == [path]


def test_one_set_has_contours_and_the_seed_decides(demo, tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    draw(demo, one, "--augmentation", "medium")
    draw(demo, other, "--augmentation", "medium", "--seed", 1)
    assert one.read_bytes() != other.read_bytes()
    picture = cv2.cvtColor(cv2.imread(str(one)), cv2.COLOR_BGR2RGB)
    contour = (picture == (255, 0, 160)).all(axis=2)[TITLE:]
    for row in range(2):
        for column in range(3):
            tile = contour[row * TILE[0] : (row + 1) * TILE[0], column * TILE[1] : (column + 1) * TILE[1]]
            assert 300 < tile.sum() < 3000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--augmentation", "mild"], "data.augmentation=mild: choose from none, hflip, light, medium, winner"),
        (["--input", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_drawn_ends_in_one_line(demo, tmp_path, options, words):
    result = draw(demo, tmp_path, *options, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {words}")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
