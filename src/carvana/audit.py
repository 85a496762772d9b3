"""What is wrong, or odd, in the training data: each photo by itself, and all of them beside each other."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from carvana.images import Photos, angle_of, car_of
from carvana.inspection import Inspection, contour_agreement, inspect, read_gray
from carvana.log import progress
from carvana.threads import map_in_threads

THREADS, WAITING = 2, 8
ANGLES = 16
MOST_CAR = 0.7  # of a photo; the competition's cars take 13 to 36 %
SPECK = 2e-5  # of the photo, 50 pixels of 1918 x 1280; a larger hole may be a gap between spokes
FAR = 6.0  # robust standard deviations from the median of an angle
MISFIT = 0.15  # that another mask fits better, as a share of the contour, before two are called swapped
ALIKE = 1.5  # gray levels between two thumbnails, root of the mean square


class Kind(NamedTuple):
    """A sort of finding."""

    heading: str
    meaning: str
    breaks: bool  # training: a fault, not a warning


class Finding(NamedTuple):
    kind: str
    image_id: str
    text: str


KINDS = {
    "file": Kind("Files", "Unreadable, cut, misnamed or of another size. Download them again.", True),
    "inverted": Kind("Inverted masks", "The studio is marked instead of the car. Invert the mask.", True),
    "gray": Kind("Masks of more than two colours", "Any colour but black is taken as car. Cut the mask at half.", True),
    "swapped": Kind("Swapped masks", "Each fits the other's photo much better than its own. Exchange them.", True),
    "size": Kind("Photos of another size", "Kaggle scores at one size. Leave them out or replace them.", False),
    "angles": Kind("Cars with angles missing", "Folds are dealt by car, so training works. Fetch the others.", False),
    "duplicate": Kind("Near duplicates", "Of two cars they would leak between folds. Drop one of them.", False),
    "stray": Kind("Stray parts", "Pixels marked away from the car. Usually a slip of the brush.", False),
    "speck": Kind("Specks of background in the car", "Holes of a few pixels. Usually a slip of the brush.", False),
    "border": Kind("Cars cut by the border", "True of some pickups, but rare: look whether the mask is right.", False),
    "area": Kind("Unusual areas", "Far larger or smaller than other cars at this angle: look at it.", False),
    "edges": Kind("Masks off the edges", "Less of the contour than usual lies on an edge of the photo.", False),
}


def audit(photos: Photos) -> tuple[list[Inspection], list[Finding]]:
    """Looks at every photo in two threads, and returns what was seen and what is to be said of it, worst kind first."""
    ids = photos.image_ids
    seen = list(progress(map_in_threads(partial(inspect, photos), ids, THREADS, WAITING), "audit", total=len(ids)))
    whole = [one for one in seen if not one.faults]
    findings = [Finding("file", "", line) for line in photos.name_faults()]
    findings += [Finding("file", one.image_id, line) for one in seen for line in one.faults]
    for look in (find_alone, find_sizes, find_areas, find_duplicates, find_angles, partial(find_misfits, photos)):
        findings += look(whole)
    order = list(KINDS)
    return seen, sorted(findings, key=lambda finding: order.index(finding.kind))


def find_alone(seen: list[Inspection]) -> Iterator[Finding]:
    """What a mask shows by itself."""
    for one in seen:
        if one.colors > 2:
            yield Finding("gray", one.image_id, f"{one.colors} colours")
        if one.share > MOST_CAR or one.corners == 4:
            yield Finding("inverted", one.image_id, f"{one.share:.0%} of the photo is marked, {one.corners} corners")
            continue
        if one.parts:
            yield Finding(
                "stray", one.image_id, f"{len(one.parts)} beside the car, the largest of {max(one.parts)} pixels"
            )
        if specks := [pixels for pixels in one.holes if pixels < SPECK * one.size[0] * one.size[1]]:
            yield Finding("speck", one.image_id, f"{len(specks)}, the largest of {max(specks)} pixels")
        if one.border:
            yield Finding("border", one.image_id, "touches it")


def find_sizes(seen: list[Inspection]) -> Iterator[Finding]:
    sizes = Counter(one.size for one in seen)
    for one in seen:
        if one.size != (usual := sizes.most_common(1)[0][0]):
            yield Finding("size", one.image_id, f"{one.size[1]}x{one.size[0]}, the others {usual[1]}x{usual[0]}")


def find_angles(seen: list[Inspection]) -> Iterator[Finding]:
    angles = defaultdict(set)
    for one in seen:
        angles[car_of(one.image_id)].add(angle_of(one.image_id))
    for car, there in angles.items():
        if missing := sorted(set(range(1, ANGLES + 1)) - there):
            yield Finding("angles", car, "no angle " + ", ".join(map(str, missing)))


def find_areas(seen: list[Inspection]) -> Iterator[Finding]:
    for some in by_angle(seen).values():
        for one, distance in zip(some, robust_distance([one.share for one in some], 0.01), strict=True):
            if abs(distance) > FAR:
                yield Finding("area", one.image_id, f"{one.share:.1%} of the photo, {distance:+.0f} deviations")


def find_duplicates(seen: list[Inspection]) -> Iterator[Finding]:
    """Pairs of photos that differ by no more than what a camera or a JPEG does."""
    if not seen:
        return
    flat = np.stack([one.thumbnail.ravel() for one in seen]).astype(np.float32)
    norms = np.square(flat).sum(1)
    for place, thumbnail in enumerate(flat):
        squares = norms[place + 1 :] + norms[place] - 2 * flat[place + 1 :] @ thumbnail
        for other in place + 1 + np.flatnonzero(squares < ALIKE**2 * flat.shape[1]):
            yield Finding("duplicate", seen[place].image_id, f"and {seen[other].image_id}")


def find_misfits(photos: Photos, seen: list[Inspection]) -> Iterator[Finding]:
    """Masks whose contour lies off the photo's edges: swapped if they fit each other's photo, odd if not."""
    for some in by_angle(seen).values():
        far = robust_distance([one.agreement for one in some], 0.02)
        low = [one for one, distance in zip(some, far, strict=True) if distance < -FAR]
        swapped = set()
        for one, other in combinations(low, 2):
            if one.size == other.size and fits_better(photos, one, other) and fits_better(photos, other, one):
                swapped |= {one.image_id, other.image_id}
                yield Finding("swapped", one.image_id, f"with that of {other.image_id}")
        for one in low:
            if one.image_id not in swapped:
                yield Finding("edges", one.image_id, f"{one.agreement:.0%} of the contour lies on an edge")


def fits_better(photos: Photos, one: Inspection, other: Inspection) -> bool:
    """Whether the other's mask lies on this photo's edges better than its own."""
    gray = read_gray(photos, one.image_id)
    return contour_agreement(gray, photos.mask(other.image_id)) > one.agreement + MISFIT


def by_angle(seen: list[Inspection]) -> dict[int, list[Inspection]]:
    groups = defaultdict(list)
    for one in seen:
        groups[angle_of(one.image_id)].append(one)
    return groups


def robust_distance(values: list[float], least: float) -> np.ndarray:
    """From the median, in standard deviations as the median absolute deviation gives them, but of `least` or more."""
    distance = np.asarray(values) - np.median(values)
    return distance / max(1.4826 * np.median(np.abs(distance)), least)
