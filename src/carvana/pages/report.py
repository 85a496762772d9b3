"""What a report shows of an evaluated experiment, beside others: numbers, charts, pictures."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from markupsafe import Markup

from carvana.config import differences
from carvana.data.images import Photos, car_of
from carvana.data.rle import rle_decode, rle_encode
from carvana.errors import InputError
from carvana.evaluation.comparison import compare
from carvana.evaluation.oof import Oof
from carvana.evaluation.summary import read_current_oof
from carvana.evaluation.trained import find_checkpoints, unscored_line
from carvana.log import progress, read_records, say
from carvana.models.checkpoint import read_facts
from carvana.pages import charts
from carvana.pages.labelled import Labelled, describe_labels
from carvana.pages.page import embed, write_page
from carvana.pages.pictures import densest, mark_errors, shrink
from carvana.pages.studios import OTHERS, find_studios
from carvana.pages.survey import BANDS, Survey, survey
from carvana.prediction.ensemble import Choice, read_ensemble
from carvana.submission.journal import read_journal

THUMBNAIL, QUALITY = 240, 55  # pixels wide; of the large pictures' WebP
SIDE = 420  # pixels of the square that is zoomed at
SHOWN_CURVE = (0.2, 0.8)  # thresholds


def write_report(
    path: Path, folders: list[Path], photos: Photos, journal: Path, worst: int, sample: int,
    labelled: Labelled | None = None,
) -> dict:  # fmt: skip
    """Writes the page of the first of `folders`, with the others beside it; returns the first one's summary.

    `worst` photos and a `sample` of the others are drawn, and the least sure of `labelled` ones. Raises InputError for
    an experiment that was not evaluated, or if `photos` lacks one of its photos.
    """
    evaluated, records = [read_current_oof(folder) for folder in folders], read_journal(journal)
    summary, oof = evaluated[0]
    if absent := sorted(set(oof.table["image_id"]) - set(photos.image_ids)):
        raise InputError(f"{folders[0] / 'oof.csv'}: {absent[0]} is not among the photos; give --input they lie in")
    settings, choice = compare_settings(folders), read_choice(folders[0].parent)
    sources = [photos.select(oof.table["car"]), *([labelled.photos] if labelled else [])]
    studios, overview = find_studios(sources), survey(photos, oof)
    shown = choose_photos(oof.table, worst, sample)
    write_page(
        path, "report.html",
        summary=summary,
        experiments=[compare_experiment(facts, other, oof, records) for facts, other in evaluated],
        charts=draw_charts(overview, studios),
        studios=draw_studios(sources, studios),
        columns=overview.table[["image_id", "car", "angle", "fold", "dice", "extra", "missed", "area"]].to_dict("list"),
        pictures=[draw_photo(photos, image_id, oof) for image_id in progress(shown, "draw")],
        side=SIDE,
        training=draw_training(folders[0]),
        thresholds=draw_thresholds([facts for facts, _ in evaluated]),
        ensemble=choice,
        labels=describe_labels(labelled, studios) if labelled else None,
        settings=settings,
        unscored=list(filter(None, map(unscored_line, folders))),
    )  # fmt: skip
    return summary


def compare_experiment(summary: dict, oof: Oof, first: Oof, records: list[dict]) -> dict:
    """An experiment's row in the table of experiments: against the first one, and on the leaderboard."""
    submissions = [record for record in records if list(record["experiments"]) == [summary["experiment"]]]
    comparison = None if oof is first else compare(first.table, oof.table)
    return {"summary": summary, "comparison": comparison, "submissions": submissions}


def read_choice(runs: Path) -> Choice | None:
    """What choose_ensemble.py has chosen; None if nothing, or if it cannot be used any more, which a note says."""
    path = runs / "ensemble.json"
    if not path.exists():
        return None
    try:
        return read_ensemble(path, runs)[0]
    except InputError as error:
        return say(f"note: not shown: {error}")


def choose_photos(table: pd.DataFrame, worst: int, sample: int) -> list[str]:
    """The `worst` photos by Dice, and a `sample` evenly from the others, worst first."""
    ordered = table.sort_values("dice", kind="stable")["image_id"].tolist()
    others = ordered[worst:]
    places = np.linspace(0, len(others) - 1, min(sample, len(others))).round().astype(int)
    return ordered[:worst] + [others[place] for place in places]


def draw_charts(overview: Survey, studios: pd.Series) -> dict[str, Markup]:
    brightness = overview.table[["red", "green", "blue"]] @ [0.299, 0.587, 0.114]
    table = overview.table.assign(brightness=brightness, percent=100 * overview.table["area"])
    bands = [f"{low}-{high}" for low, high in zip((0, *BANDS), BANDS, strict=False)] + [f"> {BANDS[-1]}"]
    return {
        "angle": charts.by_angle(table),
        "studio": charts.by_studio(table.assign(studio=table["car"].map(studios))),
        "car": charts.by_car(table),
        "area": charts.against(table, "percent", "area of the car, per cent of the photo"),
        "brightness": charts.against(table, "brightness", "brightness of the car, 0 to 255"),
        "histogram": charts.histogram(table),
        "distance": charts.distances(bands, overview.bands / max(1, overview.bands.sum())),
    }


def draw_studios(sources: list[Photos], studios: pd.Series) -> dict[str, str]:
    """A photo of each studio."""
    drawn = {}
    for photos in sources:
        for image_id in photos.image_ids:
            if (name := studios[car_of(image_id)]) not in drawn:
                drawn[name] = embed(shrink(photos.image(image_id), THUMBNAIL))
    return {name: drawn[name] for name in studios.cat.categories if name != OTHERS}


def draw_photo(photos: Photos, image_id: str, oof: Oof) -> dict:
    """A photo for the page's viewer, which draws the two masks over it itself."""
    place = oof.table.index[oof.table["image_id"] == image_id][0]
    image, mask = photos.image(image_id), photos.mask(image_id)
    predicted = rle_decode(oof.masks[place], mask.shape)
    return {
        "row": int(place),
        "size": mask.shape,
        "photo": embed(image, QUALITY),
        "thumbnail": embed(shrink(mark_errors(cv2.GaussianBlur(image, (0, 0), 1), predicted, mask), THUMBNAIL)),
        "truth": rle_encode(mask),
        "predicted": oof.masks[place],
        "worst": densest(predicted != mask, min(SIDE, *mask.shape)),
    }


def draw_training(folder: Path) -> list[Markup]:
    """Loss and Dice of each fold, epoch by epoch."""
    logs = {path.parent.name: read_records(path) for path in sorted(folder.glob("fold*/log.jsonl"))}
    logs = {name: pd.DataFrame(records) for name, records in logs.items() if records}
    drawn, quantities = [], {"loss": "training loss", "dice": "Dice of the validated photos"} if logs else {}
    for key, label in quantities.items():
        last = ", ".join(f"{name} ends at {log[key].iloc[-1]:.4f}" for name, log in logs.items())
        lines = {name: (log["epoch"], log[key]) for name, log in logs.items()}
        drawn.append(charts.curves(f"{label} by epoch: {last}", lines, "epoch", label))
    return drawn


def draw_thresholds(summaries: list[dict]) -> Markup:
    """Out-of-fold Dice of each experiment by threshold."""
    lines = {}
    for summary in summaries:
        curve = pd.Series(summary["curve"]).rename(float).loc[slice(*SHOWN_CURVE)]
        lines[summary["experiment"]] = curve.index, curve
    best = ", ".join(f"{summary['experiment']} is best at {summary['threshold']:.2f}" for summary in summaries)
    return charts.curves(f"Dice by threshold: {best}", lines, "threshold", "out-of-fold Dice")


def compare_settings(folders: list[Path]) -> dict:
    """What the first experiment's checkpoint says of it, and in what settings each other one differs."""
    facts = {folder.name: read_facts(find_checkpoints(folder.parent, folder.name)[0]) for folder in folders}
    (_, first), *others = facts.items()
    return first | {"differences": {name: differences(first["config"], other["config"]) for name, other in others}}
