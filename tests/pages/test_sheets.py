"""Contact sheets of a few drawn cars: their sizes, what is marked where, and what cannot be drawn."""

import cv2
import numpy as np
import pytest
from conftest import run_script

from carvana.data.augmentations import AUGMENTATIONS
from carvana.data.images import open_test
from carvana.data.rle import rle_encode
from carvana.pages.pictures import BLUE, CAPTION_HEIGHT, RED, mark_errors, scale
from carvana.pages.sheets import GAP, PINK, SMALL_WIDTH, WIDTH, draw_overlays, mark_mask, zoom_tile
from carvana.submission.csv import write_submission

BOX = np.zeros((96, 144), bool)
BOX[30:70, 40:100] = True


def draw(demo, output, *arguments: object, **options) -> tuple:
    """Status of draw.py, its last line, and the picture."""
    result = run_script("draw.py", *arguments, "--input", demo / "input", "--output", output, **options)
    picture = cv2.imread(str(output))[..., ::-1] if output.exists() else None
    return result.returncode, (result.stderr + result.stdout).splitlines()[-1], picture


def test_a_submission_is_drawn_over_photos_from_its_first_to_its_last(demo, tmp_path):
    photos, path, height = open_test(demo / "input"), tmp_path / "submission.csv.gz", 320 + CAPTION_HEIGHT
    write_submission(path, ((photos.name(image_id), rle_encode(BOX)) for image_id in photos.image_ids))
    picture = draw_overlays(path, photos, 2).picture
    tiles = [scale(mark_mask(photos.image(photos.image_ids[place]), BOX), WIDTH) for place in (0, 15)]
    assert (picture.reshape(height, 2, WIDTH, 3)[:320].swapaxes(0, 1) == tiles).all()
    _, line, picture = draw(demo, tmp_path / "x.jpg", "overlays", path)
    assert (line[-11:], picture.shape) == (": 16 photos", (4 * height, 4 * WIDTH, 3))


def test_colours_of_masks_and_of_errors():
    image = np.full((96, 144, 3), 128, np.uint8)
    marked = mark_mask(image, BOX)
    assert [(marked[50, 40] == PINK).all(), (marked[:20] == 128).all()] == [True, True]  # the contour; outside
    assert (marked[50, 70] == np.round(0.8 * 128 + 0.2 * PINK)).all()
    predicted = np.roll(BOX, 20, axis=1)
    tile = zoom_tile(image, mark_errors(image, predicted, BOX), predicted != BOX)
    assert tile.shape == (320, WIDTH + 2 * 320, 3)
    assert (tile[:96, WIDTH : WIDTH + 96] == 128).all()  # the photo as it is
    marked = tile[:96, WIDTH + 320 : WIDTH + 320 + 96].reshape(-1, 3)
    assert [(marked == color).all(axis=1).sum() for color in (RED, BLUE)] == [40 * 20] * 2  # too much, missed


def test_every_set_of_augmentations_has_a_block_of_photos_with_contours(demo, tmp_path):
    options = ["--count", 2, "--draws", 3, "--size", "64x96"]
    _, line, sheet = draw(demo, tmp_path / "x.png", "augmentations", *options)
    assert line == f"{tmp_path / 'x.png'}: 2 photos, 3 draws of {', '.join(AUGMENTATIONS)}"
    contours = (sheet == PINK).all(axis=2).reshape(len(AUGMENTATIONS), -1, 3, SMALL_WIDTH + GAP)[:, CAPTION_HEIGHT:]
    pixels = contours.reshape(len(AUGMENTATIONS), 2, 213 + GAP, 3, -1).sum((2, 4))  # by set, photo and draw
    assert ((pixels > 300) & (pixels < 3000)).all()


@pytest.mark.parametrize(("name", "rle", "words"), [
    ("c3_01", "1 1", "none of its rows has a photo"),
    ("", "13825 1", "past the last pixel"),
    (None, "", "data.augmentation=mild: choose from none, hflip, light, medium, winner"),
])  # fmt: skip
def test_what_cannot_be_drawn(demo, tmp_path, name, rle, words):
    write_submission(tmp_path / "x.csv", [(f"{name or open_test(demo / 'input').image_ids[0]}.jpg", rle)])
    command = ["augmentations", "--augmentation", "mild"] if name is None else ["overlays", tmp_path / "x.csv"]
    status, line, picture = draw(demo, tmp_path / "x.jpg", *command, check=False)
    assert (status, words in line, picture) == (2, True, None)
