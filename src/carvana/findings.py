"""What is to be said of the training data: faults, which break training, and warnings."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from carvana.images import Photos, angle_of, car_of
from carvana.inspection import Inspection, edge_agreement, read_gray
from carvana.threads import map_in_threads

ANGLES = 16
MOST_CAR, MOST_BORDER = 0.7, 0.5  # of the photo, of its border; real cars take up to 0.36 and 0.05
UNUSUAL_AREA, LEAST_SPREAD = 5.0, 0.05  # robust deviations; of log areas. Real cars: up to 2.5
ALIKE = 4.0  # gray levels, root of the mean square between thumbnails. Real photos: 9.5 and more
DOUBTFUL, ODD, EXTREME = 2.0, 4.0, 6.0  # robust deviations below the median agreement. Real masks: up to 3.0
LEAST_DEVIATION = 0.05  # of agreements
NO_FIT = 0.5  # agreement that is a fault whatever the others have
BETTER = 0.08  # by which another mask agrees with a photo; another real car's never does
TRIED = 8  # other masks
BLOCK = 512  # photos compared with all others at once


class Kind(NamedTuple):
    heading: str
    advice: str
    breaks: bool  # training: a fault, not a warning


class Finding(NamedTuple):
    kind: str
    name: str  # an image id, a car, or a file
    text: str
    other: str = ""  # image id of the photo, or mask, that it is like or that fits better


KINDS = {
    "file": Kind("Files", "Missing, unreadable, cut, misnamed, there twice, or a mask that is not of its photo's size. "
                 "Download or unzip them again, or remove what is too much.", True),
    "empty": Kind("Empty masks", "No pixel is car, while every photo shows one. Leave the photo out.", True),
    "inverted": Kind("Inverted masks", "The studio is marked instead of the car. Invert the mask.", True),
    "gray": Kind("Masks of more than two colours", "Any colour but black is read as car, so that soft edges make the "
                 "car larger. Write the mask again as black and one other colour, cut at half.", True),
    "misfit": Kind("Masks that do not fit their photo", "The contour does not follow the photo's edges: probably the "
                   "mask of another photo. Exchange those that fit each other's photo; leave out the rest.", True),
    "size": Kind("Photos of another size", "Kaggle's are all of one size. Training copes; download them again.", False),
    "angles": Kind("Cars with angles missing", "Folds are dealt by car, so training copes. Fetch the others.", False),
    "duplicate": Kind("Near duplicates", "As two cars they may stand on both sides of a fold, and a score would be too "
                      "good. Leave one of them out.", False),
    "area": Kind("Unusual areas", "Larger or smaller than this car at its other angles and other cars at this angle "
                 "let expect. Look whether a piece is missing or too much.", False),
    "edges": Kind("Masks off the edges", "Less of the contour than usual follows an edge of the photo. A dark car "
                  "before a dark wall may be right; look at it.", False),
    "stray": Kind("Stray parts", "Marked pixels that are not connected with the car: in real masks tops of antennas. "
                  "They cost little; look at large ones.", False),
    "border": Kind("Cars cut by the border", "True of long pickups, and rare. Look whether the mask is right.", False),
}  # fmt: skip


def find_all(photos: Photos, seen: list[Inspection]) -> list[Finding]:
    """All findings, in the order of KINDS."""
    findings = [Finding("file", line.partition(": ")[0].rpartition("/")[2], line) for line in photos.name_faults()]
    findings += [Finding("file", one.image_id, line) for one in seen for line in one.faults]
    readable = [one for one in seen if not one.faults]
    spoilt = {finding.name: finding for finding in find_spoilt(photos, readable)}
    masked = [one for one in readable if one.image_id not in spoilt]
    findings += [*spoilt.values(), *find_gray(photos, masked), *find_misfits(photos, masked)]
    findings += [*find_sizes(readable), *find_missing_angles(seen), *find_duplicates(readable)]
    findings += [*find_unusual_areas(masked), *find_strays(masked), *find_cut(masked)]
    return sorted(findings, key=lambda finding: list(KINDS).index(finding.kind))


def find_spoilt(photos: Photos, seen: list[Inspection]) -> Iterator[Finding]:
    """Masks of nothing, and of all but the car."""
    for one in seen:
        if one.share == 0:
            yield Finding("empty", one.image_id, f"{photos.mask_name(one.image_id)}: no pixel is car")
        elif one.share > MOST_CAR or one.border_share > MOST_BORDER:
            text = f"{one.share:.0%} of the photo and {one.border_share:.0%} of its border is marked as car"
            yield Finding("inverted", one.image_id, f"{photos.mask_name(one.image_id)}: {text}")


def find_gray(photos: Photos, seen: list[Inspection]) -> Iterator[Finding]:
    for one in seen:
        if one.colors > 2:
            yield Finding("gray", one.image_id, f"{photos.mask_name(one.image_id)}: {one.colors} colours")


def find_sizes(seen: list[Inspection]) -> Iterator[Finding]:
    sizes = Counter(one.size for one in seen)
    for one in seen:
        if one.size != (usual := sizes.most_common(1)[0][0]):
            yield Finding("size", one.image_id, "{}x{} instead of {}x{}".format(*one.size[::-1], *usual[::-1]))


def find_missing_angles(seen: list[Inspection]) -> Iterator[Finding]:
    there = defaultdict(set)
    for one in seen:
        there[car_of(one.image_id)].add(angle_of(one.image_id))
    for car, angles in there.items():
        if missing := sorted(set(range(1, ANGLES + 1)) - angles):
            yield Finding("angles", car, "no photo of angle " + ", ".join(f"{angle:02d}" for angle in missing))


def find_duplicates(seen: list[Inspection]) -> Iterator[Finding]:
    """Photos that differ from an earlier one by no more than another exposure or JPEG quality."""
    thumbnails = np.stack([one.thumbnail for one in seen]) if seen else np.empty((0, 1))
    squares = np.square(thumbnails).mean(1)
    for start in range(0, len(seen), BLOCK):
        block = slice(start, start + BLOCK)
        product = thumbnails[block] @ thumbnails.T / thumbnails.shape[1]
        apart = np.sqrt((squares[block, None] + squares - 2 * product).clip(0))
        apart[np.triu_indices(len(apart), start, len(seen))] = np.inf  # itself, and the later ones
        for place in start + np.flatnonzero(apart.min(1) < ALIKE):
            row = apart[place - start]
            earlier = seen[row.argmin()].image_id
            yield Finding(
                "duplicate", seen[place].image_id, f"as {earlier}, but for {row.min():.1f} gray levels", earlier
            )


def find_unusual_areas(seen: list[Inspection]) -> Iterator[Finding]:
    """Areas far from what the car's size and the angle let expect: medians of their logarithms, taken out in turn."""
    ids = [one.image_id for one in seen]
    by_car, by_angle = list(map(car_of, ids)), list(map(angle_of, ids))
    area = pd.Series(np.log([one.share for one in seen]), dtype=float)
    for group in (by_angle, by_car, by_angle):
        area -= area.groupby(group).transform("median")
    spread = 1.4826 * area.abs().groupby(by_angle).transform("median")
    for one, by, deviations in zip(seen, area, area / spread.clip(lower=LEAST_SPREAD), strict=True):
        if abs(deviations) > UNUSUAL_AREA:
            yield Finding("area", one.image_id, f"{one.share:.1%} of the photo, {np.expm1(by):+.0%} of the expected")


def find_strays(seen: list[Inspection]) -> Iterator[Finding]:
    for one in seen:
        if one.strays:
            yield Finding("stray", one.image_id, f"{len(one.strays)}, the largest of {max(one.strays)} pixels")


def find_cut(seen: list[Inspection]) -> Iterator[Finding]:
    for one in seen:
        if any(one.border):
            sides = zip(("top", "bottom", "left", "right"), one.border, strict=True)
            yield Finding("border", one.image_id, ", ".join(f"{side} on {n} pixels" for side, n in sides if n))


def find_misfits(photos: Photos, seen: list[Inspection]) -> Iterator[Finding]:
    """Masks off the photo's edges: a fault if another photo's mask fits, or hardly anything does; else a warning.

    The other masks tried are those of the same angle that fit their own photos worst: of two swapped, neither fits.
    """
    below = deviations_below([one.agreement for one in seen])
    doubtful = [(one, low) for one, low in zip(seen, below, strict=True) if low > DOUBTFUL or one.agreement < NO_FIT]
    tried = map_in_threads(partial(find_better, photos, seen), (one for one, _ in doubtful), threads=2, waiting=4)
    for (one, low), (other, agreement) in zip(doubtful, tried, strict=True):
        text = f"{photos.mask_name(one.image_id)}: {one.agreement:.0%} of its contour follows an edge"
        if agreement > one.agreement + BETTER:
            yield Finding("misfit", one.image_id, f"{text}, of {photos.mask_name(other)} {agreement:.0%}", other)
        elif low > EXTREME or one.agreement < NO_FIT:
            yield Finding("misfit", one.image_id, text)
        elif low > ODD:
            yield Finding("edges", one.image_id, text)


def find_better(photos: Photos, seen: list[Inspection], one: Inspection) -> tuple[str, float]:
    """Which of the other masks fits the photo best, and its agreement; 0 if there is no other."""
    angle = angle_of(one.image_id)
    others = [other for other in seen if angle_of(other.image_id) == angle and other.size == one.size]
    others = sorted((other for other in others if other is not one), key=lambda other: other.agreement)[:TRIED]
    gray = read_gray(photos, one.image_id)
    agreements = [(edge_agreement(gray, photos.mask(other.image_id)), other.image_id) for other in others]
    best, image_id = max(agreements, default=(0.0, ""))
    return image_id, best


def deviations_below(values: list[float]) -> np.ndarray:
    """How far below the median, in standard deviations as the median of those below gives them."""
    below = np.median(values) - np.asarray(values) if values else np.empty(0)
    deviation = 1.4826 * np.median(below[below > 0]) if (below > 0).any() else 0.0
    return below / max(deviation, LEAST_DEVIATION)
