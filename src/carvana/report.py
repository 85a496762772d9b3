"""What a report shows of an evaluated experiment, beside others: numbers, charts, maps, pictures."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from markupsafe import Markup

from carvana import charts
from carvana.checkpoint import read_facts
from carvana.comparison import compare
from carvana.config import differences
from carvana.errors import InputError
from carvana.images import Photos
from carvana.journal import read_journal
from carvana.log import progress, read_records
from carvana.oof import Found, find_checkpoints, read_oof
from carvana.page import embed, write_page
from carvana.pictures import BLUE, RED, densest, mark_errors, shrink
from carvana.rle import rle_decode, rle_encode
from carvana.survey import BANDS, Survey, survey

THUMBNAIL, QUALITY = 240, 55  # pixels wide; of the large pictures' WebP
SIDE = 420  # pixels of the square that is zoomed at
VISIBLE = 4  # times the share of wrong pixels is how opaque the maps of angles are
SHOWN_CURVE = (0.2, 0.8)  # thresholds


def write_report(path: Path, folders: list[Path], photos: Photos, journal: Path, worst: int, sample: int) -> dict:
    """Writes the page of the first of `folders` beside the others; `worst` photos and a `sample` of the others are
    drawn. Returns its headline. Raises InputError for what was not evaluated, or is of photos that are not there."""
    read = {folder.name: read_oof(folder) for folder in folders}
    told, found = next(iter(read.values()))
    if absent := sorted(set(found.table["image_id"]) - set(photos.image_ids)):
        raise InputError(f"{folders[0] / 'oof.csv'}: {absent[0]} is not among the photos; give --input they lie in")
    seen = survey(photos, found)
    chosen = choose(found.table, worst, sample)
    write_page(
        path, "report.html",
        told=told,
        experiments=[describe(folder, *read[folder.name], found, journal) for folder in folders],
        charts=draw_charts(seen),
        angles=[(angle, embed(draw_map(maps))) for angle, maps in seen.maps.items()],
        columns=seen.table[["image_id", "car", "angle", "fold", "dice", "extra", "missed", "area"]].to_dict("list"),
        pictures=[draw_photo(photos, image_id, found) for image_id in progress(chosen, "draw")],
        side=SIDE,
        training=draw_training(folders[0]),
        thresholds=draw_thresholds({name: facts for name, (facts, _) in read.items()}),
        ensemble=read_ensemble(folders[0].parent / "ensemble.json"),
        settings=compare_settings(folders),
    )  # fmt: skip
    return told


def describe(folder: Path, told: dict, found: Found, first: Found, journal: Path) -> dict:
    """An experiment's row in the table of experiments."""
    gain = None if found is first else compare(first.table, found.table)
    rows = [row for row in read_journal(journal) if row["experiments"] == folder.name]
    boards = [{"public": row["public LB"], "private": row["private LB"]} for row in rows if row["public LB"]]
    return {"told": told, "gain": gain, "boards": boards}


def choose(table: pd.DataFrame, worst: int, sample: int) -> list[str]:
    """The `worst` photos by Dice, and a `sample` evenly from the others, worst first."""
    ordered = table.sort_values("dice", kind="stable")["image_id"].tolist()
    others = ordered[worst:]
    places = np.unique(np.linspace(0, len(others) - 1, min(sample, len(others))).round().astype(int))
    return ordered[:worst] + [others[place] for place in places]


def draw_charts(seen: Survey) -> dict[str, Markup]:
    table = seen.table.assign(
        brightness=seen.table[["red", "green", "blue"]] @ [0.299, 0.587, 0.114], percent=100 * seen.table["area"]
    )
    edges = [0, *BANDS]
    labels = [f"{low}-{high}" for low, high in zip(edges, BANDS, strict=False)] + [f"> {BANDS[-1]}"]
    return {
        "angle": charts.by_angle(table),
        "car": charts.by_car(table),
        "area": charts.against(table, "percent", "area of the car, per cent of the photo"),
        "brightness": charts.against(table, "brightness", "brightness of the car, 0 to 255"),
        "histogram": charts.histogram(table),
        "distance": charts.distances(labels, seen.bands / max(1, seen.bands.sum())),
    }


def draw_map(maps: np.ndarray) -> np.ndarray:
    """The mean photo of an angle, pale, with red where too much was predicted and blue where car was missed."""
    gray, extra, missed = maps
    picture = np.repeat(128 + gray[..., None] / 2, 3, axis=2)
    for share, colour in ((extra, RED), (missed, BLUE)):
        opacity = np.clip(VISIBLE * share, 0, 1)[..., None]
        picture = picture * (1 - opacity) + colour * opacity
    return picture.clip(0, 255).astype(np.uint8)


def draw_photo(photos: Photos, image_id: str, found: Found) -> dict:
    """A photo for the page's viewer, which draws the two masks over it itself."""
    place = found.table.index[found.table["image_id"] == image_id][0]
    image, mask = photos.image(image_id), photos.mask(image_id)
    predicted = rle_decode(found.masks[place], mask.shape)
    side = min(SIDE, *mask.shape)
    top, left = densest(predicted != mask, side)
    return {
        "row": int(place),
        "size": mask.shape,
        "photo": embed(image, QUALITY),
        "thumbnail": embed(shrink(mark_errors(cv2.GaussianBlur(image, (0, 0), 1), predicted, mask), THUMBNAIL)),
        "truth": rle_encode(mask),
        "predicted": found.masks[place],
        "worst": [int(top), int(left)],
    }


def draw_training(folder: Path) -> list[Markup]:
    """Loss and Dice of each fold, epoch by epoch."""
    logs = {path.parent.name: read_records(path) for path in sorted(folder.glob("fold*/log.jsonl"))}
    drawn = []
    for key, label in (("loss", "training loss"), ("dice", "Dice of the held-out cars")):
        lines = {
            name: ([record["epoch"] for record in records], [record[key] for record in records])
            for name, records in logs.items() if records
        }  # fmt: skip
        last = ", ".join(f"{name} ends at {values[-1]:.4f}" for name, (_, values) in lines.items())
        if lines:
            drawn.append(charts.curves(f"{label} by epoch: {last}", lines, "epoch", label))
    return drawn


def draw_thresholds(told: dict[str, dict]) -> Markup:
    lines = {}
    for name, facts in told.items():
        shown = {float(t): dice for t, dice in facts["curve"].items() if SHOWN_CURVE[0] <= float(t) <= SHOWN_CURVE[1]}
        lines[name] = list(shown), list(shown.values())
    best = ", ".join(f"{name} is best at {facts['threshold']:.2f}" for name, facts in told.items())
    return charts.curves(f"Dice by threshold: {best}", lines, "threshold", "out-of-fold Dice")


def read_ensemble(path: Path) -> dict | None:
    """What src/choose_ensemble.py has written beside the experiments, if it has."""
    return json.loads(path.read_text()) if path.exists() else None


def compare_settings(folders: list[Path]) -> dict:
    """The first experiment's settings and origin, and in what each other one differs from it."""
    facts = {folder.name: read_facts(find_checkpoints(folder.parent, folder.name)[0]) for folder in folders}
    (_, first), *others = facts.items()
    return {
        "config": first["config"],
        "commit": first["commit"],
        "versions": first["versions"],
        "differences": {other: differences(first["config"], their["config"]) for other, their in others},
    }
