"""Looking at all training data before training: what was found as a table and as a page."""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from carvana.data.images import Photos, car_of
from carvana.data.loader import map_in_threads
from carvana.log import progress, replacing
from carvana.pages.findings import KINDS, Finding, find_all
from carvana.pages.inspection import Inspection, inspect
from carvana.pages.page import embed, write_page
from carvana.pages.pictures import BLUE, RED, arrange, draw_contour, shrink

LISTED = 20  # findings of a kind on the page, drawn if they are of a photo
WIDTH = 400  # pixels of a picture


class Audit(NamedTuple):
    inspections: list[Inspection]  # one a photo
    findings: dict[str, list[Finding]]  # by kind, in the order of KINDS; kinds without any are left out

    def count(self, breaks: bool) -> int:
        """How many findings are faults, which break training, or else warnings."""
        return sum(len(findings) for kind, findings in self.findings.items() if KINDS[kind].breaks == breaks)


def audit_photos(photos: Photos) -> Audit:
    """Looks at every photo and mask."""
    ids = photos.image_ids
    inspections = map_in_threads(partial(inspect, photos), ids, threads=2, waiting=8)
    inspections = list(progress(inspections, "audit", total=len(ids)))
    findings = defaultdict(list)
    for finding in find_all(photos, inspections):
        findings[finding.kind].append(finding)
    return Audit(inspections, dict(findings))


def write_audit(folder: Path, root: Path, photos: Photos, audit: Audit) -> Path:
    """Writes `audit.csv`, a row a photo, and the page `audit.html`; returns the page."""
    with replacing(folder / "audit.csv") as temporary:
        tabulate(audit).to_csv(temporary, index=False, float_format="%.5f")
    write_page(
        folder / "audit.html", "audit.html",
        root=str(root), kinds=KINDS, findings=audit.findings, listed=LISTED,
        photos=len(audit.inspections), cars=len(photos.cars), pictures=draw_findings(photos, audit),
    )  # fmt: skip
    return folder / "audit.html"


def tabulate(audit: Audit) -> pd.DataFrame:
    """A row a photo; what could not be measured is empty. A finding about a car stands at each of its photos."""
    texts = {"faults": defaultdict(list), "warnings": defaultdict(list)}
    for kind, findings in audit.findings.items():
        for finding in findings:
            texts["faults" if KINDS[kind].breaks else "warnings"][finding.name].append(f"{kind}: {finding.text}")
    rows = []
    for photo in audit.inspections:
        row = {"image_id": photo.image_id, "car_share": None, "components": None, "edge_agreement": None}
        if not photo.faults:
            components = len(photo.strays) + (photo.share > 0)
            row |= {"car_share": photo.share, "components": components, "edge_agreement": photo.agreement}
        car = car_of(photo.image_id)
        rows.append(row | {key: "; ".join(named[photo.image_id] + named[car]) for key, named in texts.items()})
    return pd.DataFrame(rows)


def draw_findings(photos: Photos, audit: Audit) -> dict[Finding, str]:
    """Pictures, as addresses, of the first findings of each kind that is about a photo and its mask."""
    readable = {inspection.image_id for inspection in audit.inspections if not inspection.faults}
    first = [finding for of_kind in audit.findings.values() for finding in of_kind[:LISTED] if finding.name in readable]
    drawn = map_in_threads(partial(draw_finding, photos), first, threads=2, waiting=8)
    return dict(zip(first, map(embed, progress(drawn, "draw", total=len(first))), strict=True))


def draw_finding(photos: Photos, finding: Finding) -> np.ndarray:
    """The photo with its mask's contour in red, and in blue what the finding is about, if that is known."""

    def outlined(image_id: str) -> np.ndarray:
        return draw_contour(shrink(photos.image(image_id, (1, WIDTH)), WIDTH), photos.mask(image_id), RED)

    picture = outlined(finding.name)
    if finding.kind == "duplicate":
        return arrange([picture, outlined(finding.other)], 1)
    if finding.kind == "misfit" and finding.other:
        return draw_contour(picture, photos.mask(finding.other), BLUE)
    return picture
