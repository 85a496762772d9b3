"""Looking at all training data before training: what is found as a table and as a page."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from carvana.findings import KINDS, Finding, find_all
from carvana.images import Photos, angle_of, car_of
from carvana.inspection import Inspection, inspect
from carvana.log import progress, replacing
from carvana.page import embed, write_page
from carvana.pictures import BLUE, RED, arrange, shrink
from carvana.postprocess import drop_parts, part_sizes
from carvana.threads import map_in_threads

THREADS, WAITING = 2, 8
LISTED, DRAWN = 30, 12  # findings of a kind on the page, and how many of their photos are drawn
WIDTH = 400  # pixels of a picture
UNDRAWN = {"file", "size", "angles"}  # kinds that a mask's contour tells nothing about
SPECK = 20  # pixels of a hole: fewer are rather a slip of the brush than a window

Audit = tuple[list[Inspection], dict[str, list[Finding]]]


def audit(photos: Photos) -> Audit:
    """Looks at every photo and mask: what was seen of each, and the findings of each kind that has some."""
    ids = photos.image_ids
    seen = list(progress(map_in_threads(partial(inspect, photos), ids, THREADS, WAITING), "audit", total=len(ids)))
    by_kind = defaultdict(list)
    for finding in find_all(photos, seen):
        by_kind[finding.kind].append(finding)
    return seen, dict(by_kind)


def tabulate(audit: Audit) -> pd.DataFrame:
    """A row a photo; what could not be measured is empty."""
    seen, by_kind = audit
    told = {True: defaultdict(list), False: defaultdict(list)}
    for finding in (finding for findings in by_kind.values() for finding in findings):
        told[KINDS[finding.kind].breaks][finding.name].append(f"{finding.kind}: {finding.text}")
    return pd.DataFrame([describe(one, told[True], told[False]) for one in seen])


def describe(one: Inspection, faults: dict[str, list[str]], warnings: dict[str, list[str]]) -> dict:
    car = car_of(one.image_id)
    row = {"image_id": one.image_id, "car": car, "angle": angle_of(one.image_id)}
    if one.size:
        row |= {
            "height": one.size[0],
            "width": one.size[1],
            "colors": one.colors,
            "car_share": round(one.share, 5),
            "components": len(one.strays) + (one.share > 0),
            "largest_stray": max(one.strays, default=0),
            "holes": len(one.holes),
            "small_holes": sum(pixels < SPECK for pixels in one.holes),
            **dict(zip(("top", "bottom", "left", "right"), one.border, strict=True)),
            "edge_agreement": round(one.agreement, 4),
        }
    told = {
        key: "; ".join(texts[one.image_id] + texts[car]) for key, texts in (("faults", faults), ("warnings", warnings))
    }
    return row | told


def write_audit(folder: Path, root: Path, photos: Photos, audit: Audit) -> Path:
    """Writes `audit.csv`, a row a photo, and the page `audit.html`; returns the page."""
    seen, by_kind = audit
    with replacing(folder / "audit.csv") as temporary:
        tabulate(audit).to_csv(temporary, index=False, lineterminator="\n")
    holes = [pixels for one in seen for pixels in one.holes]
    write_page(
        folder / "audit.html", "audit.html",
        root=str(root), kinds=KINDS, findings=by_kind, listed=LISTED,
        photos=len(seen), cars=len(photos.cars), pictures=draw_all(photos, audit),
        holes=len(holes), pierced=sum(bool(one.holes) for one in seen),
        small_holes=sum(pixels < SPECK for pixels in holes), speck=SPECK,
    )  # fmt: skip
    return folder / "audit.html"


def draw_all(photos: Photos, audit: Audit) -> dict[Finding, str]:
    """Pictures of the first findings of each kind that is about a photo and its mask."""
    readable = {one.image_id for one in audit[0] if not one.faults}
    shown = [finding for kind, some in audit[1].items() if kind not in UNDRAWN for finding in some[:DRAWN]]
    shown = [finding for finding in shown if finding.name in readable]
    drawn = map_in_threads(partial(draw, photos), shown, THREADS, WAITING)
    return dict(zip(shown, progress(drawn, "draw", total=len(shown)), strict=True))


def draw(photos: Photos, finding: Finding) -> str:
    """The photo with its mask's contour in red, and in blue what the finding is about, if that is known."""
    image, mask = photos.image(finding.name, (1, WIDTH)), photos.mask(finding.name)
    picture = outline(shrink(image, WIDTH), mask, RED)
    if finding.kind == "misfit" and finding.other:
        picture = outline(picture, photos.mask(finding.other), BLUE)
    if finding.kind == "stray":
        around = np.ones([max(3, mask.shape[1] // 30)] * 2, np.uint8)
        strays = mask & ~drop_parts(mask, max(part_sizes(mask)))
        picture = outline(picture, cv2.dilate(strays.view(np.uint8), around).view(bool), BLUE)
    if finding.kind == "duplicate":
        earlier = shrink(photos.image(finding.other, (1, WIDTH)), WIDTH)
        picture = arrange([picture, outline(earlier, photos.mask(finding.other), RED)], 1)
    return embed(picture)


def outline(picture: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    """A copy of the picture with the contour of a mask of any size in it."""
    small = cv2.resize(mask.view(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    drawn = picture.copy()
    drawn[cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0] = color
    return drawn
