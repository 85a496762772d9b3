"""One training photo and its mask, looked at before training."""

from dataclasses import dataclass

import cv2
import numpy as np

from carvana.images import Photos
from carvana.pictures import shrink
from carvana.postprocess import hole_sizes, part_sizes

THUMBNAIL = (32, 48)
WIDTH = 960  # pixels in which edges are looked for: half of the competition's photos
CLEAR = 12.0  # gray levels a pixel: an edge that people see
REACH = 5  # pixels in which a contour may miss its edge


@dataclass(frozen=True)
class Inspection:
    """What was seen; of an unreadable pair the faults only."""

    image_id: str
    faults: list[str]  # lines for the user
    size: tuple[int, int] = (0, 0)
    colors: int = 0  # in the mask's file, the background among them
    share: float = 0.0  # of the photo that is car
    corners: int = 0  # corners of the photo that are car
    parts: tuple[int, ...] = ()  # pixels of each part but the largest
    holes: tuple[int, ...] = ()  # pixels of each hole
    border: bool = False  # the car touches the photo's border
    agreement: float = 0.0  # share of the mask's contour that lies on an edge of the photo
    thumbnail: np.ndarray | None = None  # (32, 48) uint8


def inspect(photos: Photos, image_id: str) -> Inspection:
    """Never raises for what is wrong with the files: that is among the faults."""
    if faults := photos.content_faults(image_id):
        return Inspection(image_id, faults)
    mask, gray = photos.mask(image_id), read_gray(photos, image_id)
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    thumbnail = cv2.resize(gray, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA)
    return Inspection(
        image_id, [], mask.shape, photos.mask_colors(image_id), float(mask.mean()), int(corners.sum()),
        parts=tuple(sorted(part_sizes(mask))[:-1]), holes=tuple(hole_sizes(mask)),
        border=bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()),
        agreement=contour_agreement(gray, mask), thumbnail=thumbnail,
    )  # fmt: skip


def read_gray(photos: Photos, image_id: str) -> np.ndarray:
    """The photo, uint8 (h, w), no wider than WIDTH."""
    return cv2.cvtColor(shrink(photos.image(image_id), WIDTH), cv2.COLOR_RGB2GRAY)


def contour_agreement(gray: np.ndarray, mask: np.ndarray) -> float:
    """Share of the mask's contour that lies on an edge of the gray photo, (h, w); 1 without a contour."""
    small = cv2.resize(mask.view(np.uint8), gray.shape[::-1], interpolation=cv2.INTER_AREA)
    contour = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    contour[[0, -1]] = contour[:, [0, -1]] = False  # a car that is cut by the border has no edge there
    if not contour.any():
        return 1.0
    soft = cv2.GaussianBlur(gray, (3, 3), 0)
    steep = cv2.magnitude(cv2.Sobel(soft, cv2.CV_32F, 1, 0) / 4, cv2.Sobel(soft, cv2.CV_32F, 0, 1) / 4) > CLEAR
    return float(cv2.dilate(steep.view(np.uint8), np.ones((REACH, REACH), np.uint8))[contour].mean())
