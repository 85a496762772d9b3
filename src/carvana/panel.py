"""A few photos of validation to watch while a network learns: the same ones, with its errors, after every epoch."""

import math

import cv2
import numpy as np
import torch
from accelerate.utils import gather_object

from carvana.images import Photos, car_of
from carvana.pictures import add_caption, arrange, mark_errors, shrink

COUNT, COLUMNS = 8, 4
WIDTH = 320  # pixels of a photo: a panel of the competition's photos is 1280 x 476 and about 1 MB
YELLOW = np.array([255, 220, 0], np.uint8)


class Panel:
    """Takes its photos' predictions as they stream by; keeps nothing but small pictures."""

    sheet: np.ndarray | None = None  # all photos of the last whole validation, uint8 (h, w, 3)

    def __init__(self, photos: Photos):
        self.photos, self.image_ids = photos, choose_photos(photos.image_ids)
        self.tiles: dict[str, np.ndarray] = {}

    def add(self, image_id: str, prediction: torch.Tensor, mask: torch.Tensor, score: float) -> None:
        """Draws a photo if it is one of the panel's; prediction and mask are bool (H, W) at photo size."""
        if image_id in self.image_ids:
            marked = mark(self.photos.image(image_id), prediction.cpu().numpy(), mask.cpu().numpy())
            self.tiles[image_id] = add_caption(shrink(marked, WIDTH), f"{image_id}  Dice {score:.4f}")

    def finish(self) -> None:
        """Ends a validation: makes one sheet of what all processes have drawn."""
        tiles = dict(gather_object(list(self.tiles.items())))
        self.sheet, self.tiles = arrange([tiles[image_id] for image_id in self.image_ids], COLUMNS), {}


def choose_photos(image_ids: list[str], count: int = COUNT) -> list[str]:
    """Photos evenly over the cars and over the angles, always the same ones.

    Every n-th photo would not do: with 63 cars of 16 angles it shows angles 1 and 16 only.
    """
    cars = {}
    for image_id in sorted(image_ids):
        cars.setdefault(car_of(image_id), []).append(image_id)
    groups = list(cars.values())
    chosen = (groups[place * len(groups) // count] for place in range(count))
    return list(dict.fromkeys(group[place * len(group) // count] for place, group in enumerate(chosen)))


def mark(image: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo with the true contour, and the errors above it."""
    side = 2 * math.ceil(image.shape[1] / WIDTH / 2) + 1  # a pixel wide on the panel, or a little more
    outlined = image.copy()
    outlined[cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8)) > 0] = YELLOW
    return mark_errors(outlined, prediction, mask)
