"""One training photo and its mask, looked at before training."""

from dataclasses import dataclass

import cv2
import numpy as np

from carvana.images import Photos
from carvana.postprocess import hole_sizes, part_sizes

LEAST = (400, 600)  # (height, width) that edges are looked for at; a photo twice as large is decoded at half its size
REACH = 213  # rows for each pixel that a contour may miss its edge by: 3 pixels at half of 1280
CLEAR = 3.0  # gray levels a pixel across the contour
THUMBNAIL, CONTRAST = (32, 48), 50.0


@dataclass(frozen=True)
class Inspection:
    """What was seen; of a pair that cannot be read, or does not match, the faults only."""

    image_id: str
    faults: tuple[str, ...] = ()  # lines for the user
    size: tuple[int, int] | None = None  # (height, width)
    colors: int = 0  # in use in the mask's file, the background among them
    share: float = 0.0  # of the photo that is car
    strays: tuple[int, ...] = ()  # pixels of each part but the largest
    holes: tuple[int, ...] = ()  # pixels of each hole
    border: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels of car on the top, bottom, left and right border
    agreement: float = 0.0  # share of the mask's contour that lies on an edge of the photo
    thumbnail: np.ndarray | None = None  # (1536,) float32 of mean 0 and deviation CONTRAST

    @property
    def border_share(self) -> float:
        """Of the photo's border that is car."""
        return sum(self.border) / (2 * sum(self.size))


def inspect(photos: Photos, image_id: str) -> Inspection:
    """Never raises for what is wrong with the files: that is among the faults."""
    if faults := photos.content_faults(image_id):
        return Inspection(image_id, tuple(faults))
    mask, gray = photos.mask(image_id), read_gray(photos, image_id)
    return Inspection(
        image_id,
        size=mask.shape,
        colors=photos.mask_colors(image_id),
        share=float(mask.mean()),
        strays=tuple(sorted(part_sizes(mask))[:-1]),
        holes=tuple(hole_sizes(mask)),
        border=tuple(int(side.sum()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])),
        agreement=edge_agreement(gray, mask),
        thumbnail=shrink_gray(gray),
    )


def read_gray(photos: Photos, image_id: str) -> np.ndarray:
    """The photo, at half its size if that is not below LEAST: uint8 (h, w)."""
    return cv2.cvtColor(photos.image(image_id, LEAST), cv2.COLOR_RGB2GRAY)


def shrink_gray(gray: np.ndarray) -> np.ndarray:
    """What is compared for duplicates: small, and of the same brightness and contrast whatever the exposure."""
    small = cv2.resize(gray, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return (small - small.mean()) * (CONTRAST / max(small.std(), 1.0))


def edge_agreement(gray: np.ndarray, mask: np.ndarray) -> float:
    """Share of the mask's contour near which the photo (h, w) is steep across it; 1 without a contour.

    Steepness along the contour does not count: else letters on the wall and spokes would pass for the car's outline.
    Of the 768 photos of 48 real cars: 0.76 to 1.00, median 0.95; with another car's mask of that angle, median 0.41.
    """
    small = cv2.resize(mask.view(np.uint8), gray.shape[::-1], interpolation=cv2.INTER_AREA)
    contour = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    contour[[0, -1]] = contour[:, [0, -1]] = 0  # a car that is cut by the border has no edge there
    rows, columns = contour.nonzero()
    if not rows.size:
        return 1.0
    across = _slopes(cv2.GaussianBlur(small.astype(np.float32), (0, 0), 2), rows, columns)
    across /= np.linalg.norm(across, axis=0) + 1e-6
    x_slope, y_slope = _gradient(cv2.GaussianBlur(gray, (3, 3), 0))
    steepest, reach = np.zeros(rows.size, np.float32), max(1, round(gray.shape[0] / REACH))
    for step in range(-reach, reach + 1):
        x = np.rint(columns + step * across[0]).astype(int).clip(0, gray.shape[1] - 1)
        y = np.rint(rows + step * across[1]).astype(int).clip(0, gray.shape[0] - 1)
        np.maximum(steepest, np.abs(x_slope[y, x] * across[0] + y_slope[y, x] * across[1]), out=steepest)
    return float((steepest > CLEAR).mean())


def _slopes(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Horizontal and vertical slope at some pixels, (2, pixels)."""
    return np.stack([slope[rows, columns] for slope in _gradient(picture)])


def _gradient(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal and vertical slope, each float32 (h, w)."""
    scale = 1 / 8  # the sum of a Sobel filter's weights
    return cv2.Sobel(picture, cv2.CV_32F, 1, 0, scale=scale), cv2.Sobel(picture, cv2.CV_32F, 0, 1, scale=scale)
