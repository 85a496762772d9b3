"""Pictures for people: what is drawn over photos, and files that are written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np

from carvana.errors import InputError
from carvana.log import replacing

CAPTION_HEIGHT = 24
RED, BLUE = np.array([255, 30, 30], np.uint8), np.array([30, 80, 255], np.uint8)


def draw_caption(width: int, caption: str) -> np.ndarray:
    """A line of white text on black: (CAPTION_HEIGHT, width, 3)."""
    strip, white = np.zeros((CAPTION_HEIGHT, width, 3), np.uint8), (255, 255, 255)
    return cv2.putText(strip, caption, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, lineType=cv2.LINE_AA)


def add_caption(tile: np.ndarray, caption: str) -> np.ndarray:
    return np.vstack([tile, draw_caption(tile.shape[1], caption)])


def scale(image: np.ndarray, width: int) -> np.ndarray:
    size = width, max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def shrink(image: np.ndarray, width: int) -> np.ndarray:
    """As `scale`, but a picture that is no wider stays as it is."""
    return image if image.shape[1] <= width else scale(image, width)


def draw_contour(picture: np.ndarray, mask: np.ndarray, color: np.ndarray, brush: int = 2) -> np.ndarray:
    """A copy of the picture (h, w, 3) with the contour of a mask, bool of any size, `brush - 1` pixels wide."""
    mask = cv2.resize(mask.view(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    contour = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((brush, brush), np.uint8))
    return np.where(contour[..., None] > 0, color, picture)


def mark_errors(image: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the photo, (h, w, 3): red is predicted as car and is none, blue is car and was missed."""
    errors = np.where(prediction[..., None], RED, BLUE)
    return np.where((prediction != mask)[..., None], errors, image)


def arrange(tiles: list[np.ndarray], columns: int, gap: int = 0) -> np.ndarray:
    """Tiles of one width, row by row, `gap` pixels below and beside each; lower tiles and empty places are black."""
    columns, height, width = min(columns, len(tiles)), max(map(len, tiles)) + gap, tiles[0].shape[1]
    sheet = np.zeros((-(-len(tiles) // columns), height, columns, width + gap, 3), np.uint8)
    for place, tile in enumerate(tiles):
        sheet[place // columns, : len(tile), place % columns, :width] = tile
    return sheet.reshape(-1, columns * (width + gap), 3)


def densest(wrong: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels that holds most of the true pixels."""
    sums = cv2.integral(wrong.astype(np.uint8))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return tuple(map(int, np.unravel_index(inside.argmax(), inside.shape)))


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes RGB, uint8 (h, w, 3), as the name's ending says. Raises InputError if OpenCV cannot."""
    try:
        encoded, data = cv2.imencode(path.suffix, image[..., ::-1])
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = image.shape[:2]
        advice = "give a name in .jpg or .png (a .jpg has at most 65500 pixels a side)"
        raise InputError(f"{path}: OpenCV cannot write such a picture of {height}x{width}; {advice}")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
