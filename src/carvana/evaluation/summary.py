"""The files of an evaluation, oof.json and its neighbours: written, joined, read; and the threshold they choose."""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvana.data.folds import folds_digest
from carvana.data.labels import SOFT
from carvana.data.soft import write_soft
from carvana.errors import InputError
from carvana.evaluation.metrics import BEYOND, THRESHOLDS, bootstrap_interval, estimate_mean
from carvana.evaluation.oof import Oof, Unseen
from carvana.evaluation.trained import trained_folds
from carvana.log import read_json, replacing, say, write_json
from carvana.models.checkpoint import all_seen_cars
from carvana.provenance import file_digest, git_commit, versions

FLAT = 1e-5  # thresholds whose Dice differs by less are equally good; the one nearest 0.5 is taken
SOFT_MASKS = "oof_soft.zip"
MASKS, GZIP = "oof_masks.csv.gz", {"compression": {"method": "gzip", "mtime": 0}}


def write_oof(folder: Path, oof: Oof, unseen: Unseen, views: Sequence[str]) -> dict:
    """Chooses the threshold and writes what `predict_oof` gave into `folder`; returns the content of `oof.json`."""
    digests = {str(fold): file_digest(path) for fold, paths in unseen.checkpoints.items() for path in paths.values()}
    missing = sorted(set(unseen.folds["fold"].tolist()) - set(unseen.checkpoints))
    facts = {"tta": list(views), "checkpoints": digests, "folds_digest": folds_digest(unseen.folds)}
    if oof.soft:
        _write_soft(folder / SOFT_MASKS, oof, unseen, facts)
    return _write(folder, oof, facts | {"folds_missing": missing})


def _write_soft(path: Path, oof: Oof, unseen: Unseen, facts: dict) -> None:
    """The soft masks, and what `data.soft` asks about them."""
    image_ids = oof.table["image_id"]
    write_soft(path, zip((f"{image_id}.png" for image_id in image_ids), oof.soft, strict=True))
    seen_cars = all_seen_cars(path for paths in unseen.checkpoints.values() for path in paths.values())
    source = {"kind": SOFT, "out_of_fold": True, "size": unseen.photos.mask(image_ids[0]).shape}
    source |= {"seen_cars": seen_cars, "digest": file_digest(path)}
    write_json(path.with_name(f"{path.name}.json"), facts | source | {"commit": git_commit(), "versions": versions()})


def merge_oof(parts: Sequence[Path], folder: Path) -> dict:
    """Joins the out-of-fold files of different folds of an experiment; returns the content of the new `oof.json`.

    Each of `parts` is a folder with the files that `write_oof` wrote. Raises InputError if one lacks a file, if their
    experiments, views or tables of folds differ, or if a fold is in two of them.
    """
    summaries, oofs = zip(*map(read_oof, parts), strict=True)
    first, digests = summaries[0], {}
    for part, summary in zip(parts, summaries, strict=True):
        for key in ("experiment", "tta", "folds_digest"):
            if summary[key] != first[key]:
                raise InputError(f"{part}: its {key} is {summary[key]}, that of {parts[0]} is {first[key]}")
        if twice := sorted(digests.keys() & summary["checkpoints"].keys()):
            raise InputError(f"{part}: fold {', '.join(twice)} is in another part too; leave one of them out")
        digests |= summary["checkpoints"]
    table = pd.concat([oof.table for oof in oofs], ignore_index=True).drop(columns="dice")
    curves = np.concatenate([oof.curves for oof in oofs])
    masks = [mask for oof in oofs for mask in oof.masks]
    missing = sorted(fold for fold in first["folds_missing"] if str(fold) not in digests)
    return _write(folder, Oof(table, curves, masks), first | {"checkpoints": digests, "folds_missing": missing})


def _write(folder: Path, oof: Oof, facts: dict) -> dict:
    """oof.csv: a row a photo; oof_curves.npy: its Dice at each of THRESHOLDS; oof_masks.csv.gz; oof.json: means."""
    mean_curve = oof.curves.mean(axis=0)
    threshold = best_threshold(mean_curve)
    table = oof.table.assign(dice=oof.curves[:, THRESHOLDS.index(threshold)])
    summary = {
        "experiment": folder.name,
        "dice": float(table["dice"].mean()),
        "interval": bootstrap_interval(table["dice"].to_numpy(), table["car"]),
        "errors": {name: estimate_mean(table[name], table["car"]) for name in BEYOND},
        "threshold": threshold,
        "dice_at_half": float(mean_curve[THRESHOLDS.index(0.5)]),
        "photos": len(table),
        "cars": int(table["car"].nunique()),
        "folds": {str(fold): float(dice) for fold, dice in table.groupby("fold")["dice"].mean().items()},
        "curve": {f"{t:.2f}": float(dice) for t, dice in zip(THRESHOLDS, mean_curve, strict=True)},
        **{key: facts[key] for key in ("folds_missing", "tta", "folds_digest")},
        "checkpoints": dict(sorted(facts["checkpoints"].items())),
        "commit": git_commit(),
        "versions": versions(),
    }
    (folder / "oof.json").unlink(missing_ok=True)  # while its neighbours are of another evaluation
    with replacing(folder / "oof_curves.npy") as temporary, temporary.open("wb") as file:
        np.save(file, oof.curves.astype(np.float64))
    masks = pd.DataFrame({"img": table["image_id"], "rle_mask": oof.masks})
    for name, content, options in (("oof.csv", table, {"float_format": "%.6f"}), (MASKS, masks, GZIP)):
        with replacing(folder / name) as temporary:
            content.to_csv(temporary, index=False, lineterminator="\n", **options)
    write_json(folder / "oof.json", summary)
    return summary


def read_oof(folder: Path) -> tuple[dict, Oof]:
    """oof.json, and what its neighbours hold; the table has the column dice. InputError if it was not evaluated."""
    try:
        summary = json.loads((folder / "oof.json").read_text())
        table = pd.read_csv(folder / "oof.csv", dtype={"image_id": str, "car": str})
        curves = np.load(folder / "oof_curves.npy")
        masks = pd.read_csv(folder / MASKS, keep_default_na=False, dtype=str)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{folder}: {error}; run src/evaluate.py {folder.name} first") from None
    if "errors" not in summary:
        raise InputError(f"{folder}: evaluated by an earlier version; run src/evaluate.py {folder.name} again")
    if len(table) != len(curves) or masks["img"].tolist() != table["image_id"].tolist():
        raise InputError(f"{folder}: its oof files are of different photos; run src/evaluate.py {folder.name} again")
    return summary, Oof(table, curves, masks["rle_mask"].tolist())


def read_current_oof(folder: Path) -> tuple[dict, Oof]:
    """`read_oof`, of the checkpoints that are there now; InputError if these were trained since."""
    summary, oof = read_oof(folder)
    check_checkpoints(folder, summary, f"run src/evaluate.py {folder.name} again")
    return summary, oof


def check_checkpoints(folder: Path, summary: dict, remedy: str) -> None:
    """Raises InputError if an oof.json is of others than those of the trained folds; if there are none it may stand."""
    digests = {str(fold): file_digest(path) for fold, path in trained_folds(folder).items()}
    if digests and summary["checkpoints"] != digests:
        raise InputError(f"{folder / 'oof.json'}: of other checkpoints than those in {folder}: {remedy}")


def summary_lines(summary: dict) -> list[str]:
    """What people read of an oof.json."""
    low, high = summary["interval"]
    lines = [
        f"{summary['experiment']}: out-of-fold Dice {summary['dice']:.5f} per image at photo size",
        f"  {summary['photos']} photos of {summary['cars']} cars, views {' + '.join(summary['tta'])}",
        f"  95 % of cars drawn anew: {low:.5f} to {high:.5f}",
        *(error_line(name, **error) for name, error in summary["errors"].items()),
        *(f"  fold {fold}: {dice:.5f}" for fold, dice in summary["folds"].items()),
    ]
    if summary["folds_missing"]:
        lines.append(f"  not trained yet, so not in the mean: fold {', '.join(map(str, summary['folds_missing']))}")
    return [*lines, f"  best threshold {summary['threshold']:.2f} (at 0.50: {summary['dice_at_half']:.5f})"]


def error_line(name: str, mean: float, interval: Sequence[float], form: str = ".5f") -> str:
    """What people read of a column of BEYOND, or of its difference."""
    low, high = (format(value, form) for value in interval)
    return f"  error beyond {BEYOND[name]} px of the true contour: {format(mean, form)} ({low} to {high})"


def best_threshold(mean_curve: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Of the thresholds within FLAT of the best, the one nearest to 0.5."""
    good = np.asarray(thresholds)[mean_curve >= mean_curve.max() - FLAT]
    return float(good[np.abs(good - 0.5).argmin()])


def choose_threshold(runs: Path, experiments: Iterable[str], views: list[str]) -> float:
    """The mean of the experiments' out-of-fold thresholds, whichever of their networks predict.

    Raises InputError if an experiment was not evaluated, or with other checkpoints than those of its trained folds. Of
    a run without any, where only the network of all cars was brought to, the threshold is taken as it is.
    """
    thresholds = []
    for experiment in experiments:
        path = runs / experiment / "oof.json"
        evaluate = f"run src/evaluate.py {experiment}, or " if trained_folds(path.parent) else ""
        remedy = f"{evaluate}give --threshold"
        if not path.exists():
            raise InputError(f"{path}: missing, so there is no threshold yet: {remedy}")
        summary = read_json(path, remedy)
        check_checkpoints(path.parent, summary, remedy)
        if summary["tta"] != views:
            say(f"note: {experiment} was evaluated with views {summary['tta']}, and now predicts with {views}")
        thresholds.append(summary["threshold"])
    return float(np.mean(thresholds))
