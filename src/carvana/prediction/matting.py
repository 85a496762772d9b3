"""Soft edges: alpha from a mask and the photo, and the car's own colours on its rim."""

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cache, partial

import cv2
import numpy as np

BLOCK = 256  # pixels: what is solved at once
NOISE = 0.07  # colours in [0, 1] that differ by less say little


def refine(image: np.ndarray, mask: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Alpha uint8 (h, w) and the car's colours uint8 (h, w, 3), of a photo and its mask, bool (h, w).

    The mask's contour may be off by a pixel of the network, which is `pixel` of the photo's; alpha is sought in a band
    of three around it. Elsewhere it is that of the mask, and the colours are the photo's.
    """
    radius = max(2, round(3 * pixel))
    alpha, colors = mask.astype(np.uint8) * 255, image.copy()
    contour = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    band = cv2.dilate(contour, np.ones((2 * radius - 1,) * 2, np.uint8)) > 0
    for core, window, inner in _blocks(band, margin=4 * radius):
        pixels, unknown = image[window].astype(np.float32) / 255, band[window]
        soft = estimate_alpha(pixels, mask[window], unknown, radius)
        alpha[core] = np.rint(255 * soft[inner])
        rim = (unknown & (soft < 1))[inner]
        colors[core][rim] = np.rint(255 * estimate_colors(pixels, soft, 4 * radius)[inner][rim])
    return alpha, colors


def _blocks(band: np.ndarray, margin: int) -> Iterator[tuple]:
    """Of each block that holds a part of the band: its place, that with a margin, and its place in the latter."""
    for top in range(0, band.shape[0], BLOCK):
        for left in range(0, band.shape[1], BLOCK):
            core = np.s_[top : top + BLOCK, left : left + BLOCK]
            if band[core].any():
                y, x = max(0, top - margin), max(0, left - margin)
                window = np.s_[y : top + BLOCK + margin, x : left + BLOCK + margin]
                yield core, window, np.s_[top - y : top - y + BLOCK, left - x : left - x + BLOCK]


@cache
def find_closed_form() -> Callable | None:
    """pymatting's closed-form matting, if that is installed. Imported for the first time, it compiles for a minute."""
    with suppress(ImportError):
        from pymatting import estimate_alpha_cf

        # More than the usual 1e-7, for the noise of cameras.
        return partial(estimate_alpha_cf, laplacian_kwargs={"epsilon": 3e-5}, cg_kwargs={"rtol": 1e-4})


def method() -> str:
    return "closed-form matting" if find_closed_form() else "local colours"


def estimate_alpha(image: np.ndarray, mask: np.ndarray, unknown: np.ndarray, radius: int) -> np.ndarray:
    """Of a photo in [0, 1]: alpha (h, w), that of the mask where it is not unknown."""
    trimap = np.where(unknown, 0.5, mask)
    solve = find_closed_form()
    if solve and trimap.min() == 0 and trimap.max() == 1 and min(mask.shape) > 2:  # else nothing to learn from
        with suppress(ValueError), redirect_stdout(None):  # not solved; it prints when its solver tries again
            return solve(image.astype(np.float64), trimap).astype(np.float32)
    return np.where(unknown, place_colors(image, mask, unknown, radius), mask).astype(np.float32)


def place_colors(image: np.ndarray, mask: np.ndarray, unknown: np.ndarray, radius: int) -> np.ndarray:
    """Alpha (h, w): where a colour lies between the car's and the room's nearby. Alike, they leave it to the mask."""
    mean = lambda values: cv2.blur(values, (4 * radius + 1,) * 2)
    known = [(side & ~unknown).astype(np.float32) for side in (mask, ~mask)]
    car, room = (mean(image * side[..., None]) / (mean(side)[..., None] + 1e-6) for side in known)
    apart = ((car - room) ** 2).sum(-1)
    place = ((image - room) * (car - room)).sum(-1) / (apart + 1e-6)
    trust = apart / (apart + NOISE**2) * (np.minimum(*map(mean, known)) > 1e-4)
    return trust * place.clip(0, 1) + (1 - trust) * cv2.blur(mask.astype(np.float32), (3, 3))


def estimate_colors(image: np.ndarray, alpha: np.ndarray, radius: int) -> np.ndarray:
    """The car's colours (h, w, 3) without what shines through of the room (blur fusion: Forte, 2021)."""
    car, room, share = image, image, alpha[..., None]
    for size in (radius, max(3, radius // 3)):
        weight = cv2.blur(alpha, (size, size))[..., None]
        car = cv2.blur(car * share, (size, size)) / (weight + 1e-5)
        room = cv2.blur(room * (1 - share), (size, size)) / (1 - weight + 1e-5)
        car = (car + share * (image - share * car - (1 - share) * room)).clip(0, 1)
    return car
