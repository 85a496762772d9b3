"""Out-of-fold evaluation: every photo predicted by the fold that did not see its car, Dice per image at photo size."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from carvana.data.folds import check_folds, fold_name, folds_digest, parse_folds, run_folder
from carvana.data.images import Photos, angle_of, car_of
from carvana.data.labels import SOFT
from carvana.data.loader import Loading
from carvana.data.rle import rle_encode
from carvana.data.soft import encode_soft, write_soft
from carvana.device import Device, share, side_by_side
from carvana.errors import InputError, few
from carvana.evaluation.metrics import BEYOND, THRESHOLDS, bootstrap_interval, dice_curve, errors_beyond, estimate_mean
from carvana.log import replacing, say, write_json
from carvana.models.checkpoint import Checkpoint, all_seen_cars, leaking_cars, load_checkpoint, read_facts
from carvana.prediction.ensemble import Checkpoints
from carvana.prediction.predictor import Mix, Prediction, Predictor, fold_members
from carvana.provenance import file_digest, git_commit, versions

HALF = 0.5  # masks are kept at this threshold, to be looked at: the best one is known only after all photos
FLAT = 1e-5  # thresholds whose Dice differs by less are equally good; the one nearest 0.5 is taken
SOFT_MASKS = "oof_soft.zip"
MASKS, GZIP = "oof_masks.csv.gz", {"compression": {"method": "gzip", "mtime": 0}}


@dataclass(frozen=True)
class Oof:
    """What out-of-fold prediction leaves of each photo; the maps themselves are not kept."""

    table: pd.DataFrame  # a row a photo: image_id, car, angle, fold, and of its mask at HALF what BEYOND names
    curves: np.ndarray  # (photos, 99) float64: its Dice at each of THRESHOLDS
    masks: list[str]  # its mask at HALF, as RLE
    soft: Sequence[bytes] = ()  # its soft mask, where that was asked for


def trained_folds(run: Path) -> dict[int, Path]:
    """The best checkpoint of each trained fold; that of all cars is none of them."""
    paths = {path.parent.name.removeprefix("fold"): path for path in run.glob("fold*/best.safetensors")}
    return {int(number): paths[number] for number in sorted(filter(str.isdecimal, paths), key=int)}


def find_checkpoints(runs: Path, experiment: str, fold: str = "all") -> list[Path]:
    """The best checkpoint of each of these folds, as `parse_folds` reads them; all are those that are trained.

    Raises InputError if there is none, or if one of them is not trained.
    """
    run = runs / experiment
    paths = {number: run_folder(run, number) / "best.safetensors" for number in parse_folds(fold, trained_folds(run))}
    if "all" in fold and not trained_folds(run):
        raise InputError(f"{run}: no trained fold there (fold*/best.safetensors); run src/train.py first")
    for number, path in paths.items():
        if not path.exists():
            remedy = f"run src/train.py {experiment} --fold {fold_name(number)} --resume"
            raise InputError(f"{path}: missing, it is not trained yet; {remedy}")
    return [*paths.values()]


def unscored_line(run: Path) -> str | None:
    """What is said of a run's network of all cars; None if there is no such network."""
    folder = run_folder(run, None)
    trained = (folder / "best.safetensors").exists()
    return f"{folder}: trained on all cars, so it has no out-of-fold score" if trained else None


def common_checkpoints(runs: Path, experiments: Sequence[str], folds: pd.DataFrame) -> Checkpoints:
    """The best checkpoints of the folds that all experiments have trained, by fold.

    Raises InputError if there is no such fold, or if a checkpoint has learnt from cars of its fold in this table.
    """
    paths, digest, cars = {}, folds_digest(folds), folds.groupby("fold")["car"].agg(list)
    for experiment in experiments:
        for path in find_checkpoints(runs, experiment):
            facts = read_facts(path)
            fold = facts["fold"]
            if fold not in cars.index or (leaking := leaking_cars(facts, cars[fold], fold, digest)):
                reason = "has learnt from " + few(leaking) if fold in cars.index else f"of a fold {fold}"
                raise InputError(f"{path}: trained with another table of folds ({reason}); give that one with --folds")
            paths.setdefault(facts["fold"], {})[experiment] = path
    common = {fold: paths[fold] for fold in sorted(paths) if len(paths[fold]) == len(set(experiments))}
    if not common:
        raise InputError(f"{runs}: no fold is trained in all of {', '.join(experiments)}; train one in all of them")
    return common


@dataclass(frozen=True)
class Unseen:
    """Photos, and for each the networks that did not see its car."""

    checkpoints: Checkpoints
    photos: Photos
    folds: pd.DataFrame
    device: Device
    loading: Loading
    part: tuple[int, int] = (0, 1)  # i (from 0) of n: this share of each fold's batches

    @property
    def by_fold(self) -> dict[int, list[str]]:
        """The image ids of each fold that has checkpoints."""
        fold_of = check_folds(self.folds, self.photos.cars).set_index("car")["fold"]
        image_ids = {fold: [] for fold in self.checkpoints}
        for image_id in self.photos.image_ids:
            image_ids.get(fold_of[car_of(image_id)], []).append(image_id)
        return {fold: self._share(image_ids[fold]) for fold in image_ids}

    def _share(self, image_ids: list[str]) -> list[str]:
        size = self.loading.batch_size
        batches = [image_ids[first : first + size] for first in range(0, len(image_ids), size)]
        return [*chain.from_iterable(share(batches, *self.part))]

    @property
    def cars(self) -> list[str]:
        """The car of each photo, in the order of `predict`."""
        return [car_of(image_id) for image_ids in self.by_fold.values() for image_id in image_ids]

    def predict(self, mixes: Callable[[dict[str, Checkpoint]], Sequence[Mix]], name: str) -> Iterator[Prediction]:
        """Each photo and its true mask, by the `mixes` that are made of its fold's networks, by experiment."""
        for fold, image_ids in self.by_fold.items():
            networks = {experiment: load_checkpoint(path) for experiment, path in self.checkpoints[fold].items()}
            predictor = Predictor(mixes(networks), self.device, self.loading)
            yield from predictor.predict(self.photos, image_ids, masks=True, description=f"{name} fold {fold}")


def predict_oof(
    unseen: Unseen, views: Sequence[str], backend: str = "torch", devices: Sequence[Device] = (), soft: bool = False
) -> Oof:
    """Scores each photo of an experiment; photos of folds without a checkpoint are left out.

    With `devices` they are shared among those, a process each. With `soft` the probabilities are kept, compressed.
    """
    shares = [replace(unseen, device=device, part=(i, len(devices))) for i, device in enumerate(devices)] or [unseen]
    oofs = side_by_side(_predict_share, [(part, views, backend, soft) for part in shares if part.cars])
    order = np.argsort(np.concatenate([oof.table["fold"] for oof in oofs]), kind="stable")
    masks = [mask for oof in oofs for mask in oof.masks]
    pngs = [png for oof in oofs for png in oof.soft]
    table = pd.concat([oof.table for oof in oofs], ignore_index=True).iloc[order].reset_index(drop=True)
    curves = np.concatenate([oof.curves for oof in oofs])[order]
    return Oof(table, curves, [masks[i] for i in order], [pngs[i] for i in order] if soft else ())


def _predict_share(unseen: Unseen, views: Sequence[str], backend: str, soft: bool) -> Oof:
    rows, curves, masks, pngs = [], [], [], []
    fold_of = {image_id: fold for fold, image_ids in unseen.by_fold.items() for image_id in image_ids}
    members = lambda networks: [fold_members([*networks.values()], views, unseen.device, backend=backend)]
    for prediction in unseen.predict(members, "evaluate"):
        image_id = prediction.image_id
        mask = (prediction.probs >= HALF).cpu().numpy()
        row = {"image_id": image_id, "car": car_of(image_id), "angle": angle_of(image_id), "fold": fold_of[image_id]}
        rows.append(row | errors_beyond(mask, prediction.mask.cpu().numpy()))
        curves.append(dice_curve(prediction.probs, prediction.mask).cpu().numpy())
        masks.append(rle_encode(mask))
        if soft:
            pngs.append(encode_soft(prediction.probs))
    table = pd.DataFrame(rows).round(6)  # as oof.csv holds it
    return Oof(table, np.reshape(curves, (-1, len(THRESHOLDS))), masks, pngs)


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
    views or tables of folds differ, or if a fold is in two of them.
    """
    summaries, oofs = zip(*map(read_oof, parts), strict=True)
    first, digests = summaries[0], {}
    for part, summary in zip(parts, summaries, strict=True):
        for key in ("tta", "folds_digest"):
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
        summary, table = json.loads((folder / "oof.json").read_text()), pd.read_csv(folder / "oof.csv")
        curves = np.load(folder / "oof_curves.npy")
        masks = pd.read_csv(folder / MASKS, keep_default_na=False, dtype=str)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{folder}: {error}; run src/evaluate.py {folder.name} first") from None
    if "errors" not in summary:
        raise InputError(f"{folder}: evaluated by an earlier version; run src/evaluate.py {folder.name} again")
    if len(table) != len(curves) or masks["img"].tolist() != table["image_id"].tolist():
        raise InputError(f"{folder}: its oof files are of different photos; run src/evaluate.py {folder.name} again")
    return summary, Oof(table, curves, masks["rle_mask"].tolist())


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
        remedy = f"run src/evaluate.py {experiment}, or give --threshold"
        if not path.exists():
            raise InputError(f"{path}: missing, so there is no threshold yet: {remedy}")
        summary = json.loads(path.read_text())
        digests = {str(fold): file_digest(trained) for fold, trained in trained_folds(path.parent).items()}
        if digests and summary["checkpoints"] != digests:
            raise InputError(f"{path}: of other checkpoints than those in {path.parent}: {remedy}")
        if summary["tta"] != views:
            say(f"note: {experiment} was evaluated with views {summary['tta']}, the submission has {views}")
        thresholds.append(summary["threshold"])
    return float(np.mean(thresholds))
