"""Faults in the training data, which break training, and warnings."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from carvana.data.images import Photos, angle_of, car_of
from carvana.data.loader import map_in_threads
from carvana.pages.inspection import Inspection, edge_agreement, read_gray

MOST_CAR, MOST_BORDER = 0.7, 0.5  # of the photo, of its border; real cars take up to 0.36 and 0.05
UNUSUAL_AREA, LEAST_SPREAD = 5.0, 0.05  # robust deviations; of log areas. Real cars: up to 2.5
ALIKE = 4.0  # gray levels, root of the mean square between thumbnails. Real photos: 9.5 and more
DOUBTFUL, EXTREME, LEAST_DEVIATION = 2.0, 6.0, 0.05  # likewise, below the median agreement. Real masks: up to 3.0
NO_FIT = 0.5  # agreement that is a fault whatever the others have
BETTER, TRIED = 0.08, 8  # by which one of so many other masks agrees more; another real car's never does


class Kind(NamedTuple):
    heading: str
    advice: str
    breaks: bool = True  # training: a fault, not a warning


class Finding(NamedTuple):
    kind: str
    name: str  # an image id, a car, or a file
    text: str
    other: str = ""  # image id of the photo, or mask, that it is like or that fits better


KINDS = {
    "file": Kind("Files", "Missing, unreadable, cut, misnamed, there twice, or a mask that is not of its photo's size. "
                 "Download or unzip them again, or remove what is too much."),
    "empty": Kind("Empty masks", "No pixel is car, while every photo shows one. Leave the photo out."),
    "inverted": Kind("Inverted masks", "The studio is marked instead of the car. Invert the mask."),
    "gray": Kind("Masks of more than two colours", "Any colour but black is read as car, so that soft edges make the "
                 "car larger. Write the mask again as black and one other colour, cut at half."),
    "misfit": Kind("Masks that do not fit their photo", "The contour does not follow the photo's edges: probably the "
                   "mask of another photo. Exchange those that fit each other's photo; leave out the others."),
    "angles": Kind("Cars with angles missing", "Folds are dealt by car, so training copes. Fetch the others.", False),
    "duplicate": Kind("Near duplicates", "As two cars they may stand on both sides of a fold, and a score would be too "
                      "good. Leave one of them out.", False),
    "area": Kind("Unusual areas", "Larger or smaller than this car at its other angles and other cars at this angle "
                 "let expect. Look whether a piece is missing or too much.", False),
    "stray": Kind("Stray parts", "Marked pixels that are not connected with the car: in real masks tops of antennas. "
                  "They cost little; look at large ones.", False),
}  # fmt: skip


def find_all(photos: Photos, inspections: list[Inspection]) -> list[Finding]:
    """All findings, in the order of KINDS."""
    findings = [Finding("file", line.partition(": ")[0].rpartition("/")[2], line) for line in photos.name_faults()]
    findings += [Finding("file", inspection.image_id, line) for inspection in inspections for line in inspection.faults]
    readable = [inspection for inspection in inspections if not inspection.faults]
    of_masks = list(find_in_masks(photos, readable))
    spoilt = {finding.name for finding in of_masks if finding.kind in ("empty", "inverted")}
    masked = [inspection for inspection in readable if inspection.image_id not in spoilt]
    findings += [*of_masks, *find_misfits(photos, masked), *find_unusual_areas(masked)]
    findings += [*find_missing_angles(inspections), *find_duplicates(readable)]
    return sorted(findings, key=lambda finding: list(KINDS).index(finding.kind))


def find_in_masks(photos: Photos, inspections: list[Inspection]) -> Iterator[Finding]:
    """Masks of nothing, of all but the car, of more than two colours, of several parts."""
    for photo in inspections:
        name = photos.mask_name(photo.image_id)
        if photo.share == 0:
            yield Finding("empty", photo.image_id, f"{name}: no pixel is car")
        elif photo.share > MOST_CAR or photo.border_share > MOST_BORDER:
            marked = f"{photo.share:.0%} of the photo and {photo.border_share:.0%} of its border is marked as car"
            yield Finding("inverted", photo.image_id, f"{name}: {marked}")
        else:
            if photo.colors > 2:
                yield Finding("gray", photo.image_id, f"{name}: {photo.colors} colours")
            if photo.strays:
                largest = max(photo.strays)
                yield Finding("stray", photo.image_id, f"{len(photo.strays)}, the largest of {largest} pixels")


def find_missing_angles(inspections: list[Inspection]) -> Iterator[Finding]:
    angles = defaultdict(set)
    for inspection in inspections:
        angles[car_of(inspection.image_id)].add(angle_of(inspection.image_id))
    for car, photographed in angles.items():
        if missing := sorted(set(range(1, 17)) - photographed):
            yield Finding("angles", car, "no photo of angle " + ", ".join(f"{angle:02d}" for angle in missing))


def find_duplicates(inspections: list[Inspection]) -> Iterator[Finding]:
    """Photos that differ from an earlier one by no more than another exposure or JPEG quality."""
    if len(inspections) < 2:
        return
    thumbnails = np.stack([inspection.thumbnail for inspection in inspections])
    root = thumbnails.shape[1] ** 0.5  # the root of the mean square is the distance through that of the pixels' number
    neighbors = NearestNeighbors(radius=ALIKE * root, algorithm="brute").fit(thumbnails)
    for place, (distances, places) in enumerate(zip(*neighbors.radius_neighbors(sort_results=True), strict=True)):
        if (earlier := places < place).any():
            nearest = inspections[places[earlier][0]].image_id
            text = f"as {nearest}, but for {distances[earlier][0] / root:.1f} gray levels"
            yield Finding("duplicate", inspections[place].image_id, text, nearest)


def find_unusual_areas(inspections: list[Inspection]) -> Iterator[Finding]:
    """Areas far from what the car's size and the angle let expect: medians of their logarithms, taken out in turn."""
    ids = [inspection.image_id for inspection in inspections]
    by_car, by_angle = list(map(car_of, ids)), list(map(angle_of, ids))
    area = pd.Series(np.log([inspection.share for inspection in inspections]), dtype=float)
    for group in (by_angle, by_car, by_angle):
        area -= area.groupby(group).transform("median")
    spread = 1.4826 * area.abs().groupby(by_angle).transform("median")
    for inspection, excess, deviations in zip(inspections, area, area / spread.clip(lower=LEAST_SPREAD), strict=True):
        if abs(deviations) > UNUSUAL_AREA:
            text = f"{inspection.share:.1%} of the photo, {np.expm1(excess):+.0%} of the expected"
            yield Finding("area", inspection.image_id, text)


def find_misfits(photos: Photos, inspections: list[Inspection]) -> Iterator[Finding]:
    """Masks off the photo's edges that another photo's mask fits better, or that hardly fit at all.

    The other masks tried are those of the same angle that fit their own photos worst: of two swapped, neither fits.
    """
    below = deviations_below([inspection.agreement for inspection in inspections])
    pairs = zip(inspections, below, strict=True)
    doubtful = [pair for pair in pairs if pair[1] > DOUBTFUL or pair[0].agreement < NO_FIT]
    find = partial(find_better, photos, inspections)
    better = map_in_threads(find, (inspection for inspection, _ in doubtful), threads=2, waiting=4)
    for (inspection, low), (agreement, other) in zip(doubtful, better, strict=True):
        own = inspection.agreement
        text = f"{photos.mask_name(inspection.image_id)}: {own:.0%} of its contour follows an edge"
        if agreement > own + BETTER:
            text += f", of {photos.mask_name(other)} {agreement:.0%}"
            yield Finding("misfit", inspection.image_id, text, other)
        elif low > EXTREME or own < NO_FIT:
            yield Finding("misfit", inspection.image_id, text)


def find_better(photos: Photos, inspections: list[Inspection], doubtful: Inspection) -> tuple[float, str]:
    """How well the best of the other masks fits the photo, and which it is; 0 if there is no other."""
    others = sorted((other.agreement, other.image_id) for other in inspections if other is not doubtful)
    ids = [image_id for _, image_id in others if angle_of(image_id) == angle_of(doubtful.image_id)]
    gray = read_gray(photos, doubtful.image_id)
    return max(((edge_agreement(gray, photos.mask(other)), other) for other in ids[:TRIED]), default=(0.0, ""))


def deviations_below(values: list[float]) -> np.ndarray:
    """How far below the median, in standard deviations as the median of those below gives them."""
    below = np.median(values) - np.asarray(values) if values else np.empty(0)
    deviation = 1.4826 * np.median(below[below > 0]) if (below > 0).any() else 0.0
    return below / max(deviation, LEAST_DEVIATION)
