"""What is wrong in out-of-fold masks, photo by photo and over all of them."""

from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from carvana.data.images import Photos
from carvana.data.loader import map_in_threads
from carvana.data.rle import rle_decode
from carvana.evaluation.metrics import pixels_from_contour
from carvana.evaluation.oof import Oof
from carvana.log import progress

BANDS = (1, 2, 3, 5, 10, 30)  # pixels from the contour of the true mask; beyond the last is one more band


class Survey(NamedTuple):
    table: pd.DataFrame  # a row a photo: what the out-of-fold table has, extra, missed, area, red, green, blue
    bands: np.ndarray  # wrong pixels of all photos by their distance to the contour: (len(BANDS) + 1,)


def survey(photos: Photos, oof: Oof) -> Survey:
    """Looks at every photo of an out-of-fold table, in two threads."""
    pairs = zip(oof.table["image_id"], oof.masks, strict=True)
    looks = map_in_threads(partial(look_at, photos), pairs, threads=2, waiting=8)
    rows, bands = zip(*progress(looks, "survey", len(oof.masks)), strict=True)
    return Survey(oof.table.join(pd.DataFrame(rows, index=oof.table.index)), sum(bands))


def look_at(photos: Photos, pair: tuple[str, str]) -> tuple[dict, np.ndarray]:
    """One photo's row and bands, as in Survey, of its mask given as (image id, RLE)."""
    image_id, rle = pair
    mask, image = photos.mask(image_id), photos.image(image_id)
    predicted = rle_decode(rle, mask.shape)
    extra, missed = predicted & ~mask, mask & ~predicted
    row = {"extra": int(extra.sum()), "missed": int(missed.sum()), "area": float(mask.mean())}
    row |= dict(zip(("red", "green", "blue"), cv2.mean(image, mask.view(np.uint8)), strict=False))
    distances = np.searchsorted(BANDS, pixels_from_contour(mask)[extra | missed])
    return row, np.bincount(distances, minlength=len(BANDS) + 1)
