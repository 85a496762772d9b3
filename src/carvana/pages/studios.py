"""The studio that each car was photographed in, found by what its photos show around the car."""

from collections import defaultdict
from collections.abc import Iterable

import cv2
import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

from carvana.data.images import Photos, car_of
from carvana.data.loader import map_in_threads
from carvana.log import progress

GRID = (16, 24)  # cells down and across
BORDER = 2  # cells on each side, which cars seen from front or back never reach
DISTANCE = 12.0  # between studios, in gray levels; 11 to 13 give the same four large ones
FEWEST = 3  # cars of a studio
OTHERS = "others"


def find_studios(sources: Iterable[Photos]) -> pd.Series:
    """The studio of each car, by two of its photos, as categories by car: `studio 1` has most cars.

    `others` share their studio with one car at most. Clusters of average linkage, however many there are: of 136 real
    cars four with 14 to 26 cars, five with 6 to 12, and 8 others. Nothing is drawn: equal photos give equal studios. A
    studio is known by its wall, its letters and its floor, so that it counts twice if its camera was moved.
    """
    looks = {}
    for photos in sources:
        ids = defaultdict(list)
        for image_id in photos.image_ids:
            ids[car_of(image_id)].append(image_id)
        both = [(photos, own[0], own[len(own) // 2]) for own in ids.values()]  # of 16 the front and the back
        looks |= zip(ids, progress(map_in_threads(look_around, both, 2, 8), "studios", len(ids), "car"), strict=True)
    cars = pd.Series(sorted(looks))
    clustering = AgglomerativeClustering(n_clusters=None, distance_threshold=DISTANCE, linkage="average")
    labels = clustering.fit_predict([looks[car] for car in cars]) if len(cars) > 1 else np.zeros(len(cars))
    clusters = sorted(cars.groupby(labels).agg(list), key=lambda cluster: (-len(cluster), cluster))
    names = [f"studio {rank}" if len(cluster) >= FEWEST else OTHERS for rank, cluster in enumerate(clusters, 1)]
    studios = {car: name for name, cluster in zip(names, clusters, strict=True) for car in cluster}
    return pd.Series(studios, dtype=pd.CategoricalDtype(list(dict.fromkeys(names))))


def look_around(look: tuple[Photos, str, str]) -> np.ndarray:
    """The border of two photos' mean at a mean brightness of 200, so that distances are root mean squares: (432,)."""
    photos, *image_ids = look
    images = (photos.image(image_id, GRID) for image_id in image_ids)
    small = [cv2.resize(image, GRID[::-1], interpolation=cv2.INTER_AREA) for image in images]
    around = np.ones(GRID, bool)
    around[BORDER:-BORDER, BORDER:-BORDER] = False
    border = np.mean(small, axis=0)[around].ravel()
    return border * (200 / max(border.mean(), 1) / border.size**0.5)
