"""Out-of-fold evaluation: every photo predicted by the fold that did not see its car, Dice per image at photo size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvana.checkpoint import Checkpoint, load_checkpoint
from carvana.device import Device
from carvana.errors import InputError
from carvana.folds import check_folds, folds_digest
from carvana.images import Photos, angle_of, car_of
from carvana.inference import Member, fold_model, predict_photos
from carvana.log import replacing, say, write_json
from carvana.metrics import THRESHOLDS, bootstrap_interval, dice_curve
from carvana.provenance import git_commit, versions
from carvana.rle import rle_encode
from carvana.submission import read_submission, write_submission
from carvana.windows import find_cars

HALF = 0.5  # the masks that are kept to be looked at are cut there: the best threshold is known only after all photos
FLAT = 1e-5  # thresholds whose Dice differs by less are equally good; the one nearest 0.5 is taken


@dataclass(frozen=True)
class Found:
    """What out-of-fold prediction leaves of each photo; the maps themselves are not kept."""

    table: pd.DataFrame  # a row a photo: image_id, car, angle, fold
    curves: np.ndarray  # (photos, 99) float64: its Dice at each of THRESHOLDS
    masks: list[str]  # its mask at HALF, as RLE


def find_checkpoints(runs: Path, experiment: str) -> list[Path]:
    """The best checkpoint of each trained fold. Raises InputError if there is none."""
    paths = sorted((runs / experiment).glob("fold*/best.safetensors"))
    if not paths:
        raise InputError(f"{runs / experiment}: no trained fold there (fold*/best.safetensors); run src/train.py first")
    return paths


def load_folds(checkpoints: list[Path], digest: str) -> list[Checkpoint]:
    """Raises InputError for a checkpoint of another table of folds: some of its training cars would be scored."""
    loaded = [load_checkpoint(path) for path in checkpoints]
    for checkpoint in loaded:
        if checkpoint.folds_digest != digest:
            raise InputError(f"{checkpoint.path}: trained with another table of folds; give that one with --folds")
    return loaded


def predict_oof(
    checkpoints: list[Checkpoint], photos: Photos, folds: pd.DataFrame, views: list[str], device: Device,
    batch_size: int = 4, num_workers: int = 2, backend: str = "torch",
) -> Found:  # fmt: skip
    """Predicts each photo by the fold that did not see its car; photos of folds without a checkpoint are left out."""
    present = check_folds(folds, photos.cars).set_index("car")["fold"]
    rows, curves, masks = [], [], []
    for checkpoint in checkpoints:
        image_ids = [image_id for image_id in photos.image_ids if present[car_of(image_id)] == checkpoint.fold]
        seen = find_cars(photos, image_ids, [checkpoint], device, batch_size, num_workers)
        member = Member(checkpoint.config.data.geometry, fold_model(checkpoint, views, device, backend=backend))
        predictions = predict_photos(
            [member], seen, image_ids, device, masks=True, batch_size=batch_size, num_workers=num_workers,
            description=f"fold {checkpoint.fold}",
        )  # fmt: skip
        for image_id, probs, mask in predictions:
            rows.append((image_id, car_of(image_id), angle_of(image_id), checkpoint.fold))
            curves.append(dice_curve(probs, mask).cpu().numpy())
            masks.append(rle_encode((probs >= HALF).cpu().numpy()))
    return Found(pd.DataFrame(rows, columns=["image_id", "car", "angle", "fold"]), np.stack(curves), masks)


def write_oof(folder: Path, found: Found, checkpoints: list[Checkpoint], folds: pd.DataFrame, views: list[str]) -> dict:
    """Chooses the threshold and writes what `predict_oof` found into `folder`; returns the content of `oof.json`."""
    trained = {str(checkpoint.fold): checkpoint.digest for checkpoint in checkpoints}
    missing = sorted(set(folds["fold"].tolist()) - {checkpoint.fold for checkpoint in checkpoints})
    facts = {"tta": views, "checkpoints": trained, "folds_missing": missing, "folds_digest": folds_digest(folds)}
    return _write(folder, found, facts)


def merge_oof(parts: Sequence[Path], folder: Path) -> dict:
    """Joins what several commands found about different folds of an experiment; returns the content of `oof.json`.

    Each of `parts` is a folder with their files. Raises InputError if one lacks a file, or if they are of different
    views or tables of folds, or if a fold is in two of them.
    """
    read = [read_oof(part) for part in parts]
    first, trained = read[0][0], {}
    for part, (facts, _) in zip(parts, read, strict=True):
        for key in ("tta", "folds_digest"):
            if facts[key] != first[key]:
                raise InputError(f"{part}: its {key} is {facts[key]}, that of {parts[0]} is {first[key]}")
        if twice := sorted(trained.keys() & facts["checkpoints"].keys()):
            raise InputError(f"{part}: fold {', '.join(twice)} is in another part too; leave one of them out")
        trained |= facts["checkpoints"]
    table = pd.concat([found.table for _, found in read], ignore_index=True).drop(columns="dice")
    curves = np.concatenate([found.curves for _, found in read])
    masks = [mask for _, found in read for mask in found.masks]
    missing = sorted(fold for fold in first["folds_missing"] if str(fold) not in trained)
    return _write(folder, Found(table, curves, masks), first | {"checkpoints": trained, "folds_missing": missing})


def _write(folder: Path, found: Found, facts: dict) -> dict:
    """oof.csv: a row a photo; oof_curves.npy: its Dice at each of THRESHOLDS; oof_masks.csv.gz; oof.json: means."""
    mean_curve = found.curves.mean(axis=0)
    threshold = best_threshold(mean_curve)
    table = found.table.assign(dice=found.curves[:, THRESHOLDS.index(threshold)])
    summary = {
        "experiment": folder.name,
        "dice": float(table["dice"].mean()),
        "interval": bootstrap_interval(table["dice"].to_numpy(), table["car"]),
        "threshold": threshold,
        "dice_at_half": float(mean_curve[THRESHOLDS.index(0.5)]),
        "photos": len(table),
        "cars": int(table["car"].nunique()),
        "folds": {str(fold): float(dice) for fold, dice in table.groupby("fold")["dice"].mean().items()},
        "folds_missing": facts["folds_missing"],
        "tta": facts["tta"],
        "curve": {f"{t:.2f}": float(dice) for t, dice in zip(THRESHOLDS, mean_curve, strict=True)},
        "checkpoints": dict(sorted(facts["checkpoints"].items())),
        "folds_digest": facts["folds_digest"],
        "commit": git_commit(),
        "versions": versions(),
    }
    with replacing(folder / "oof_curves.npy") as temporary, temporary.open("wb") as file:
        np.save(file, found.curves.astype(np.float64))
    with replacing(folder / "oof.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6f")
    write_submission(folder / "oof_masks.csv.gz", zip(table["image_id"], found.masks, strict=True))
    write_json(folder / "oof.json", summary)
    return summary


def read_oof(folder: Path) -> tuple[dict, Found]:
    """oof.json, and what its neighbours hold; the table has the column dice. InputError if it was not evaluated."""
    try:
        summary, table = json.loads((folder / "oof.json").read_text()), pd.read_csv(folder / "oof.csv")
        curves = np.load(folder / "oof_curves.npy")
        masks = dict(read_submission(folder / "oof_masks.csv.gz"))
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{folder}: {error}; run src/evaluate.py {folder.name} first") from None
    if not len(table) == len(curves) == len(masks) or list(masks) != table["image_id"].tolist():
        raise InputError(f"{folder}: its oof files are of different photos; run src/evaluate.py {folder.name} again")
    return summary, Found(table, curves, list(masks.values()))


def best_threshold(mean_curve: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Of the thresholds within FLAT of the best, the one nearest to 0.5."""
    good = np.asarray(thresholds)[mean_curve >= mean_curve.max() - FLAT]
    return float(good[np.abs(good - 0.5).argmin()])


def choose_threshold(runs: Path, checkpoints: dict[str, list[Checkpoint]], views: list[str]) -> float:
    """The mean of the experiments' out-of-fold thresholds, for their checkpoints by experiment.

    Raises InputError if an experiment was not evaluated, or with other checkpoints than these.
    """
    thresholds = []
    for experiment, used in checkpoints.items():
        path = runs / experiment / "oof.json"
        remedy = f"run src/evaluate.py {experiment}, or give --threshold"
        if not path.exists():
            raise InputError(f"{path}: missing, so there is no threshold yet: {remedy}")
        summary = json.loads(path.read_text())
        if summary["checkpoints"] != {str(c.fold): c.digest for c in used}:
            raise InputError(f"{path}: of other checkpoints than those in {path.parent}: {remedy}")
        if summary["tta"] != views:
            say(f"note: {experiment} was evaluated with views {summary['tta']}, the submission has {views}")
        thresholds.append(summary["threshold"])
    return float(np.mean(thresholds))
