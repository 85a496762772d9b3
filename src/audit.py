"""Looks at the training data before training: `python src/audit.py`. Exit status 1 if something breaks training.

Writes runs/audit/audit.csv, a row a photo, and runs/audit/audit.html, with pictures of what was found.
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
import typer

from carvana.audit import KINDS, Finding, audit
from carvana.command import INPUT, RUNS, CarsOption, InputOption, run
from carvana.errors import few
from carvana.images import Photos, angle_of, car_of, open_train
from carvana.inspection import Inspection
from carvana.log import progress, replacing
from carvana.page import embed, write_page
from carvana.pictures import shrink

LISTED, DRAWN = 50, 12  # findings of a kind on the page, and how many of them with a picture
WIDTH = 320  # pixels of a picture
OUTLINE = np.array([255, 0, 160], np.uint8)


def main(
    input_root: InputOption = INPUT,
    cars: CarsOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the page.")] = RUNS / "audit",
) -> None:
    photos = open_train(input_root, cars)
    seen, findings = audit(photos)
    by_kind = {kind: [finding for finding in findings if finding.kind == kind] for kind in KINDS}
    with replacing(output / "audit.csv") as temporary:
        tabulate(seen, findings).to_csv(temporary, index=False, lineterminator="\n", float_format="%.5f")
    write_page(
        output / "audit.html", "audit.html", root=str(input_root), photos=len(seen), cars=len(photos.cars),
        kinds=KINDS, findings=by_kind, listed=LISTED, pictures=draw(photos, seen, by_kind),
    )  # fmt: skip
    for kind, some in by_kind.items():
        if some:
            names = few(list(dict.fromkeys(finding.image_id or finding.text for finding in some)))
            print(
                f"{'fault' if KINDS[kind].breaks else 'warning'}: {KINDS[kind].heading.lower()}: {len(some)}: {names}"
            )
    print(f"{output / 'audit.html'}: {len(seen)} photos of {len(photos.cars)} cars, {len(findings)} findings")
    if any(KINDS[finding.kind].breaks for finding in findings):
        raise typer.Exit(1)


def tabulate(seen: list[Inspection], findings: list[Finding]) -> pd.DataFrame:
    """A row a photo, with its findings as text."""
    told: dict[str, list[str]] = {}
    for finding in findings:
        told.setdefault(finding.image_id, []).append(f"{finding.kind}: {finding.text}")
    rows = [
        (
            one.image_id, car_of(one.image_id), angle_of(one.image_id), *one.size, one.colors, one.share,
            len(one.parts), sum(one.parts), len(one.holes), sum(one.holes), one.border, one.agreement,
            "; ".join(told.get(one.image_id, [])),
        )
        for one in seen
    ]  # fmt: skip
    names = (
        "image_id car angle height width colors car_share stray_parts stray_pixels holes hole_pixels border edge_share"
    )
    return pd.DataFrame(rows, columns=[*names.split(), "findings"])


def draw(photos: Photos, seen: list[Inspection], by_kind: dict[str, list[Finding]]) -> dict[str, str]:
    """A small picture of the first photos of each kind, with the mask's contour, by image id."""
    readable = {one.image_id for one in seen if not one.faults}
    chosen = [finding.image_id for some in by_kind.values() for finding in some[:DRAWN]]
    chosen = [image_id for image_id in dict.fromkeys(chosen) if image_id in readable]
    return {image_id: draw_photo(photos, image_id) for image_id in progress(chosen, "draw")}


def draw_photo(photos: Photos, image_id: str) -> str:
    image, mask = shrink(photos.image(image_id), WIDTH), photos.mask(image_id).view(np.uint8)
    mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    image = image.copy()
    image[cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0] = OUTLINE
    return embed(image)


if __name__ == "__main__":
    run(main)
