"""What a report shows of photos that networks have labelled: how sure they are, by angle and studio, and where not."""

import heapq
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd

from carvana.config import DataConfig
from carvana.data.images import Photos, angle_of, car_of
from carvana.data.labels import Label, read_labels
from carvana.data.rle import rle_decode
from carvana.errors import InputError, few
from carvana.log import progress
from carvana.pages.page import embed
from carvana.pages.pictures import BLUE, RED, draw_contour, scale
from carvana.pages.sheets import WIDTH, zoom_tile

LEAST = DataConfig().pseudo_least
BRUSH = 4  # a contour 3 px wide on the photo


class Labelled(NamedTuple):
    path: Path
    photos: Photos  # of the cars that are labelled
    table: pd.DataFrame  # a row a label: image_id, car, angle, expected_dice, agreement, unsure
    least_sure: list[Label]


def read_labelled(path: Path, photos: Photos, count: int) -> Labelled:
    """Reads labels of some of the photos; masks are kept of the `count` least sure only.

    Raises InputError if the file is missing, broken, without a label, or of a photo that is not among `photos`.
    """
    rows = []

    def note() -> Iterator[Label]:
        for label in progress(read_labels(path), "labels"):
            image_id = PurePath(label.img).stem
            rows.append((image_id, car_of(image_id), angle_of(image_id), label.expected_dice, label.agreement))
            yield label

    least_sure = heapq.nsmallest(count, note(), key=lambda label: min(label.expected_dice, label.agreement))
    table = pd.DataFrame(rows, columns=["image_id", "car", "angle", "expected_dice", "agreement"])
    if table.empty:
        raise InputError(f"{path}: holds no label")
    if absent := sorted(set(table["image_id"]).difference(photos.image_ids)):
        raise InputError(f"{photos.photo_part.path}: lacks {few(absent)} of {path}; set --labels-input to their folder")
    unsure = table[["expected_dice", "agreement"]].min(axis=1) < LEAST
    return Labelled(path, photos.select(table["car"]), table.assign(unsure=unsure), least_sure)


def describe_labels(labelled: Labelled, studios: pd.Series) -> dict:
    """Counts and means, all and by angle and studio, and pictures of the least sure photos."""
    table = labelled.table.assign(studio=labelled.table["car"].map(studios), all="all")
    measures = {"cars": ("car", "nunique"), "photos": ("car", "size"), "unsure": ("unsure", "sum")}
    measures |= {name: (name, "mean") for name in ("expected_dice", "agreement")}
    groups = {key: table.groupby(key, observed=True).agg(**measures) for key in ("all", "angle", "studio")}
    rows = {key: group.reset_index(names="name").to_dict("records") for key, group in groups.items()}
    pictures = [
        (label, studios[car_of(PurePath(label.img).stem)], embed(draw_label(labelled, label)))
        for label in progress(labelled.least_sure, "draw")
    ]
    return {"file": labelled.path.name, "least": LEAST, "total": rows.pop("all")[0], "rows": rows, "pictures": pictures}


def draw_label(labelled: Labelled, label: Label) -> np.ndarray:
    """The photo, its mask's contour in blue, and disputed pixels in red; if there are any, beside it a part of it."""
    image = labelled.photos.image(PurePath(label.img).stem)
    try:
        mask, disputed = (rle_decode(rle, image.shape[:2]) for rle in (label.rle_mask, label.disputed))
    except ValueError as error:
        raise InputError(f"{labelled.path}: {label.img}: {error}; label these photos again") from error
    marked = np.where(disputed[..., None], RED, draw_contour(image, mask, BLUE, BRUSH))
    return zoom_tile(image, marked, disputed) if disputed.any() else scale(marked, WIDTH)
