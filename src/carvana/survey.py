"""What is wrong in out-of-fold masks, photo by photo and over all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import pandas as pd

from carvana.geometry import Size
from carvana.images import Photos, angle_of
from carvana.log import progress
from carvana.oof import Found
from carvana.rle import rle_decode
from carvana.threads import map_in_threads

BANDS = (1, 2, 3, 5, 10, 30)  # pixels from the contour of the true mask; beyond the last is one more band
MAP_SIZE = (128, 192)  # of the maps over all photos of an angle
THREADS, WAITING = 2, 8


@dataclass(frozen=True)
class Look:
    """One photo's mask against its truth."""

    image_id: str
    extra: int  # pixels predicted as car that are none
    missed: int  # pixels of the car that were not predicted
    area: float  # of the car, as a share of the photo
    colour: np.ndarray  # (3,) mean RGB of the car
    bands: np.ndarray  # wrong pixels by their distance to the contour: (len(BANDS) + 1,)
    maps: np.ndarray  # (3, *MAP_SIZE): gray photo in 0..255, share of extra and of missed pixels


@dataclass(frozen=True)
class Survey:
    table: pd.DataFrame  # a row a photo: what the out-of-fold table has, extra, missed, area, red, green, blue
    bands: np.ndarray  # wrong pixels of all photos by distance
    maps: dict[int, np.ndarray]  # by angle the mean of its photos' maps


def survey(photos: Photos, found: Found) -> Survey:
    """Looks at every photo of an out-of-fold table, in two threads."""
    rows, bands, maps, counts = [], 0, {}, {}
    for look in look_at_all(photos, found):
        angle = angle_of(look.image_id)
        rows.append((look.extra, look.missed, look.area, *look.colour))
        bands = bands + look.bands
        maps[angle], counts[angle] = maps.get(angle, 0) + look.maps, counts.get(angle, 0) + 1
    names = ["extra", "missed", "area", "red", "green", "blue"]
    table = pd.concat([found.table, pd.DataFrame(rows, columns=names, index=found.table.index)], axis=1)
    return Survey(table, bands, {angle: maps[angle] / counts[angle] for angle in sorted(maps)})


def look_at_all(photos: Photos, found: Found) -> Iterator[Look]:
    pairs = list(zip(found.table["image_id"], found.masks, strict=True))
    return progress(map_in_threads(partial(look_at, photos), pairs, THREADS, WAITING), "survey", total=len(pairs))


def look_at(photos: Photos, pair: tuple[str, str]) -> Look:
    """Compares a photo's mask, given as its id and RLE, with the truth."""
    image_id, rle = pair
    mask, image = photos.mask(image_id), photos.image(image_id)
    wrong = mask != rle_decode(rle, mask.shape)
    distance = pixels_from_contour(mask)[wrong]
    small = cv2.resize(image, MAP_SIZE[::-1], interpolation=cv2.INTER_AREA)
    maps = [cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), shrink(wrong & ~mask, MAP_SIZE), shrink(wrong & mask, MAP_SIZE)]
    return Look(
        image_id,
        extra=int(np.count_nonzero(wrong & ~mask)),
        missed=int(np.count_nonzero(wrong & mask)),
        area=float(mask.mean()),
        colour=np.array(cv2.mean(image, mask.view(np.uint8))[:3]),
        bands=np.bincount(np.searchsorted(BANDS, distance), minlength=len(BANDS) + 1),
        maps=np.stack(maps).astype(np.float32),
    )


def pixels_from_contour(mask: np.ndarray) -> np.ndarray:
    """Pixels from each pixel to the nearest one on the other side of the contour, 1 beside it: float32 (H, W)."""
    inside = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 5)
    return np.where(mask, inside, outside)


def shrink(mask: np.ndarray, size: Size) -> np.ndarray:
    """The share of true pixels, float32 of this size."""
    return cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
