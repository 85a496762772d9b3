import cv2
import numpy as np
import pytest

from carvana.errors import InputError
from carvana.pages.pictures import RED, arrange, densest, draw_contour, write_picture


def test_tiles_in_rows_the_densest_place_and_the_contour_of_a_mask_of_any_size():
    tiles = [np.full((height, 6, 3), 50 + number, np.uint8) for number, height in enumerate((4, 2, 4))]
    sheet = arrange(tiles, columns=2, gap=1)  # black below and beside them, and where there is none
    assert [set(place.flat) for place in (sheet[:4, :6], sheet[:2, 7:13], sheet[5:9, :6])] == [{50}, {51}, {52}]
    assert (sheet.shape, (sheet > 0).sum()) == ((2 * 5, 2 * 7, 3), sum(tile.size for tile in tiles))
    wrong = np.zeros((50, 80), bool)
    wrong[5:8, 60:75] = wrong[40, 10] = True
    top, left = densest(wrong, 20)
    assert wrong[top : top + 20, left : left + 20].sum() == 45
    for size in ((40, 60), (80, 120)):
        mask = np.tile(np.arange(size[0])[:, None] < size[0] // 2, size[1])
        drawn = (draw_contour(np.full((40, 60, 3), 90, np.uint8), mask, RED, brush=3) == RED).all(axis=2)
        assert (drawn[19:21].all(), drawn.sum()) == (True, 2 * 60)


def test_an_earlier_picture_stays_if_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path, picture = tmp_path / "x.jpg", np.zeros((4, 4, 3), np.uint8)
    path.write_bytes(b"earlier")
    for suffix, broken in ((".txt", cv2.imencode), (".jpg", lambda *_: (False, None))):
        monkeypatch.setattr(cv2, "imencode", broken)
        with pytest.raises(InputError, match="cannot write"):
            write_picture(path.with_suffix(suffix), picture)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"earlier", [path])
