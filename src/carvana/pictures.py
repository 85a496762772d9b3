"""Pictures for people: written whole or not at all."""

from pathlib import Path

import cv2
import numpy as np

from carvana.errors import InputError
from carvana.log import replacing

CAPTION_HEIGHT = 24
RED, BLUE = np.array([255, 30, 30], np.uint8), np.array([30, 80, 255], np.uint8)


def add_caption(tile: np.ndarray, caption: str) -> np.ndarray:
    """The picture (h, w, 3) above a line of white text on black: (h + CAPTION_HEIGHT, w, 3)."""
    strip = np.zeros((CAPTION_HEIGHT, tile.shape[1], 3), np.uint8)
    white, thin = (255, 255, 255), 1
    cv2.putText(strip, caption, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, thin, cv2.LINE_AA)
    return np.vstack([tile, strip])


def shrink(image: np.ndarray, width: int) -> np.ndarray:
    """The picture at this width by area, in its proportions; as it is if it is no wider."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def mark_errors(image: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the photo, (h, w, 3): red is predicted as car and is none, blue is car and was missed."""
    marked = image.copy()
    marked[prediction & ~mask], marked[mask & ~prediction] = RED, BLUE
    return marked


def arrange(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """One picture of all tiles of a width, row by row; lower tiles and empty places are filled up with black."""
    columns, height, width = min(columns, len(tiles)), max(map(len, tiles)), tiles[0].shape[1]
    sheet = np.zeros((-(-len(tiles) // columns), height, columns, width, 3), np.uint8)
    for place, tile in enumerate(tiles):
        sheet[place // columns, : len(tile), place % columns] = tile
    return sheet.reshape(-1, columns * width, 3)


def densest(wrong: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels with most wrong ones in it."""
    sums = cv2.integral(wrong.astype(np.uint8))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.unravel_index(inside.argmax(), inside.shape)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 (h, w), (h, w, 3) RGB or (h, w, 4) RGBA in the format of the file's ending.

    Raises InputError if OpenCV cannot.
    """
    turned = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    try:
        done, data = cv2.imencode(path.suffix, turned)
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: OpenCV cannot write such a picture; give a name in .jpg or .png")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
