"""Contact sheets: photos beside one another, with submitted masks, with errors, or as augmentation changes them."""

from pathlib import Path, PurePath
from typing import NamedTuple

import cv2
import numpy as np

from carvana.data.augmentations import build_augmentation
from carvana.data.cache import PhotoCache
from carvana.data.dataset import TrainSet
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos
from carvana.data.rle import rle_decode
from carvana.errors import InputError
from carvana.evaluation.summary import read_current_oof
from carvana.log import progress
from carvana.pages import pictures
from carvana.pages.pictures import add_caption, arrange, draw_contour, scale
from carvana.submission.csv import read_submission

PINK = np.array([255, 0, 160], np.uint8)  # no car in the data has this colour
TINT = 0.2
BRUSH = 7  # a contour 6 px wide on the photo, 1.5 px on the sheet
WIDTH, SMALL_WIDTH = 480, 320  # pixels of a photo; the small ones are augmented photos
COLUMNS, GAP = 4, 2


class Sheet(NamedTuple):
    picture: np.ndarray  # uint8 (h, w, 3)
    content: str  # what it shows, for people


def write_sheet(sheet: Sheet, output: Path, name: str) -> str:
    """Writes the picture as `output`, or as `name` in the folder `output`; returns a line that says what is where."""
    path = output / name if output.is_dir() or not output.suffix else output
    pictures.write_picture(path, sheet.picture)
    return f"{path}: {sheet.content}"


def draw_overlays(submission: Path, photos: Photos, count: int) -> Sheet:
    """Up to `count` photos, evenly spread, with their submitted masks."""
    image_ids = set(photos.image_ids)
    names = [name for name, _ in read_submission(submission) if PurePath(name).stem in image_ids]
    if not names:
        raise InputError(f"{submission}: none of its rows has a photo in {photos.photo_part.path}")
    spread, tiles = {names[place] for place in _spread(len(names), count)}, []
    for name, rle in progress(read_submission(submission), "draw", unit="row"):
        if name in spread:
            image = photos.image(PurePath(name).stem)
            try:
                mask = rle_decode(rle, image.shape[:2])
            except ValueError as error:
                raise InputError(f"{name}: {error}; run submission.py check") from error
            tiles.append(add_caption(scale(mark_mask(image, mask), WIDTH), name))
    return Sheet(arrange(tiles, COLUMNS), f"{len(tiles)} photos")


def mark_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the photo (h, w, 3) with the mask (h, w) tinted and its contour in full colour."""
    tinted = cv2.addWeighted(image, 1 - TINT, np.broadcast_to(PINK, image.shape).copy(), TINT, 0)
    return draw_contour(np.where(mask[..., None], tinted, image), mask, PINK, BRUSH)


def draw_worst(folder: Path, photos: Photos, count: int) -> Sheet:
    """The worst photos of an evaluated experiment, worst first. Raises InputError if none of its photos is given."""
    _, oof = read_current_oof(folder)
    table = oof.table[oof.table["image_id"].isin(photos.image_ids)]
    if table.empty:
        raise InputError(f"{folder / 'oof.csv'}: none of its photos is in {photos.photo_part.path}")
    tiles = []
    for row in table.nsmallest(count, "dice").itertuples():
        image, mask = photos.image(row.image_id), photos.mask(row.image_id)
        predicted = rle_decode(oof.masks[row.Index], mask.shape)
        tile = zoom_tile(image, pictures.mark_errors(image, predicted, mask), predicted != mask)
        tiles.append(add_caption(tile, f"{row.image_id}  fold {row.fold}  Dice {row.dice:.4f}"))
    return Sheet(arrange(tiles, 1), f"the {len(tiles)} worst of {len(table)} photos")


def zoom_tile(image: np.ndarray, marked: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The marked photo, WIDTH wide; beside it the square where `places` are densest, as it is and marked.

    The square has the side of the small photo's height, in pixels of the large one: it is enlarged.
    """
    small = scale(marked, WIDTH)
    side = min(len(small), *places.shape)
    top, left = pictures.densest(places, side)
    squares = np.zeros((len(small), 2, len(small), 3), np.uint8)
    for place, picture in enumerate((image, marked)):
        squares[:side, place, :side] = picture[top : top + side, left : left + side]
    return np.hstack([small, squares.reshape(len(small), -1, 3)])


def draw_augmentations(photos: Photos, names: list[str], size: Size, count: int, draws: int) -> Sheet:
    """A block for each set of augmentations: `count` photos, a row each, as `draws` epochs of training see them."""
    for name in names:
        build_augmentation(name)  # a wrong name is refused before photos are read
    source, blocks = PhotoCache(photos, Fit(size), gib=0), []
    places = _spread(len(source), count)
    for name in progress(names, "draw", unit="set"):
        epochs, tiles = [TrainSet(source, name, 0, epoch) for epoch in range(draws)], []
        for image, mask in (epoch[place] for place in places for epoch in epochs):
            picture = scale(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), SMALL_WIDTH)
            tiles.append(draw_contour(picture, mask[0].numpy() > 127, PINK))  # the mask is 255 times the coverage
        rows = arrange(tiles, draws, GAP)
        blocks += [pictures.draw_caption(rows.shape[1], name), rows]
    return Sheet(np.vstack(blocks), f"{len(places)} photos, {draws} draws of {', '.join(names)}")


def _spread(length: int, count: int) -> list[int]:
    """Up to `count` places evenly from 0 to `length - 1`."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
