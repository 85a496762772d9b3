"""The table of folds, `car,pixels,fold`. A car is in one fold with all of its 16 photos, never on two sides."""

from collections.abc import Iterable
from hashlib import sha256
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd

from carvana.data.images import Photos, car_of
from carvana.data.tables import read_rows
from carvana.errors import InputError, few
from carvana.log import progress, replacing, say

COLUMNS = ["car", "pixels", "fold"]
SEED = 1  # of 0 to 11 the one whose folds differ least in mean area: 0.4 % for the 318 cars


def areas_of_masks(photos: Photos) -> pd.Series:
    """Mean number of car pixels in a car's masks, by car."""
    ids = photos.image_ids
    with ThreadPool(2) as pool:
        counts = pool.imap(lambda image_id: np.count_nonzero(photos.mask(image_id)), ids)
        pixels = pd.Series(list(progress(counts, "masks", len(ids), unit="mask")), index=ids)
    return pixels.groupby(car_of).mean()


def deal_folds(pixels: pd.Series, num_folds: int) -> pd.DataFrame:
    """Deals cars to folds by scikit-learn's `StratifiedGroupKFold`; `pixels` is the mean area of a car's masks by car.

    A stratum holds `num_folds` cars of neighbouring areas, or a few more; each fold gets one. Raises InputError.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second: not for those who only read a table

    if not 2 <= num_folds <= len(pixels):
        raise InputError(f"{num_folds} folds: with {len(pixels)} cars, use 2 to {len(pixels)}")
    folds = pd.DataFrame({"car": pixels.index, "pixels": pixels.round().astype("int64").to_numpy()})
    folds = folds.sort_values(["pixels", "car"], ignore_index=True)  # the order of `pixels` does not matter
    # Those of `pd.qcut`, in whole numbers: its rounding leaves some strata one car short, of 19 cars in 3 folds one.
    strata = (folds.index * (len(folds) // num_folds) - 1).to_numpy().clip(0) // (len(folds) - 1)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=SEED)
    for fold, (_, val) in enumerate(splitter.split(folds, strata, groups=folds["car"])):
        folds.loc[val, "fold"] = fold
    return folds.astype({"fold": "int64"}).sort_values("car", ignore_index=True)


def write_once(folds: pd.DataFrame, path: Path, overwrite: bool) -> None:
    """Writes the table as CSV. Raises InputError if the file has other content, unless `overwrite`."""
    text = folds[COLUMNS].to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_bytes() == text.encode():
        return say(f"{path}: unchanged")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: has other content; runs rely on it, so replace it with --overwrite only")
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
    say(f"{path}: {len(folds)} cars")


def read_folds(path: Path) -> pd.DataFrame:
    """The table in `path`. Raises InputError if it is missing, not of that form or lists a car twice."""
    remedy = "src/create_folds.py makes the table"
    try:
        columns, *rows = read_rows(path.read_bytes(), str(path), remedy)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error
    if columns != COLUMNS:
        raise InputError(f"{path}: the columns are {','.join(columns)}, not {','.join(COLUMNS)}; {remedy}")
    folds = pd.DataFrame([(*row, "", "")[: len(COLUMNS)] for row in rows], columns=COLUMNS, dtype=str)
    for column in ("pixels", "fold"):
        wrong = folds.loc[~folds[column].str.fullmatch(r"\d{1,9}"), column]
        if len(wrong):
            raise InputError(f"{path}: line {wrong.index[0] + 2}: {column} is {wrong.iloc[0]!r}, not a count")
    if repeated := sorted(set(folds.loc[folds["car"].duplicated(), "car"])):
        raise InputError(f"{path}: listed twice: {few(repeated)}; {remedy}")
    folds = folds.astype({"pixels": "int64", "fold": "int64"})
    folds.attrs["source"] = str(path)
    return folds


def check_folds(folds: pd.DataFrame, cars: Iterable[str]) -> pd.DataFrame:
    """The rows of `cars`, sorted. Raises InputError unless each has one, and each fold (0, 1, ...) one of the cars."""
    present, source = rows_of(folds, cars), source_of(folds)
    numbers = sorted(set(folds["fold"]))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise InputError(f"{source}: the folds are {few(numbers)}; they must be numbered 0, 1, ... and at least two")
    if empty := few(sorted(set(numbers).difference(present["fold"]))):
        raise InputError(f"{source}: fold {empty} has none of the {len(present)} cars present; create folds for these")
    return present


def rows_of(folds: pd.DataFrame, cars: Iterable[str]) -> pd.DataFrame:
    """The rows of `cars`, sorted. Raises InputError unless each has one."""
    cars = set(cars)
    if missing := sorted(cars.difference(folds["car"])):
        raise InputError(f"{source_of(folds)}: lacks {few(missing)}; create it anew or name another with --folds")
    return folds[folds["car"].isin(cars)].sort_values("car", ignore_index=True)


def source_of(folds: pd.DataFrame) -> str:
    """The file that `read_folds` read, for messages."""
    return folds.attrs.get("source", "the table of folds")


def parse_folds(text: str, numbers: Iterable[int]) -> list[int | None]:
    """Folds joined by commas: a number, `all` for these numbers, `none` for None, trained on all cars and listed last.

    Raises InputError.
    """
    folds = set()
    for part in map(str.strip, text.split(",")):
        if part != "all" and part != "none" and not part.isdecimal():
            raise InputError(f"--fold {text}: give a number, several as 0,1, all of them as all, or none (all cars)")
        folds.update(numbers if part == "all" else [None if part == "none" else int(part)])
    return sorted(folds, key=lambda fold: (fold is None, fold))


def fold_name(fold: int | None) -> str:
    """`parse_folds` undone: `0`, or `none`."""
    return "none" if fold is None else str(fold)


def run_folder(run: Path, fold: int | None) -> Path:
    """Where a fold of a run lies; `none` matches no pattern of the numbered ones."""
    return run / ("none" if fold is None else f"fold{fold}")


def folds_digest(folds: pd.DataFrame) -> str:
    """SHA-256 in hexadecimal of the sorted `car,fold` lines: who is in which fold, in whatever row order."""
    lines = sorted(f"{car},{fold}\n" for car, fold in zip(folds["car"], folds["fold"], strict=True))
    return sha256("".join(lines).encode()).hexdigest()
