import numpy as np

from carvana.pictures import BLUE, RED, densest
from draw_worst import TILE, draw_tile


def test_the_densest_place_is_found():
    wrong = np.zeros((50, 80), bool)
    wrong[5:8, 60:75] = wrong[40, 10] = True
    top, left = densest(wrong, 20)
    assert wrong[top : top + 20, left : left + 20].sum() == 45


def test_a_tile_shows_what_is_too_much_in_red_and_what_is_missing_in_blue():
    image = np.full((128, 192, 3), 200, np.uint8)
    mask = np.zeros((128, 192), bool)
    mask[40:80, 50:100] = True
    prediction = np.roll(mask, 20, axis=1)
    tile = draw_tile(image, prediction, mask, "car_01")
    height = 128 * TILE // 192
    assert (tile[:128, TILE : TILE + 128] == 200).all()  # the photo as it is
    marked = tile[:128, TILE + height : TILE + height + 128].reshape(-1, 3)
    for color in (RED, BLUE):
        assert (marked == color).all(axis=1).sum() == 40 * 20
