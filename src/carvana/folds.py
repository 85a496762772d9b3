"""The table of folds, `car,pixels,fold`: a car and its 16 photos lie in one fold and never on two sides."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from carvana.errors import InputError, few
from carvana.log import replacing

COLUMNS = ["car", "pixels", "fold"]


def deal_folds(pixels: pd.Series, num_folds: int) -> pd.DataFrame:
    """Deals cars round the table by size, from the smallest to the largest: 0 1 2 0 1 2 ... for three folds.

    `pixels` is the mean area of a car's masks by car; it is rounded first, so that the same areas give the
    same table however they were summed. Raises InputError if a fold would get no car or there is only one.
    """
    if not 2 <= num_folds <= len(pixels):
        raise InputError(f"{num_folds} folds: with {len(pixels)} cars, use 2 to {len(pixels)}")
    folds = pd.DataFrame({"car": pixels.index, "pixels": pixels.round().astype("int64").to_numpy()})
    folds = folds.sort_values(["pixels", "car"], ignore_index=True)
    folds["fold"] = np.arange(len(folds)) % num_folds
    return folds.sort_values("car", ignore_index=True)


def write_folds(folds: pd.DataFrame, path: Path) -> None:
    """Writes the table as CSV, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(folds_text(folds).encode())


def folds_text(folds: pd.DataFrame) -> str:
    """The table as CSV text, the same bytes on every system."""
    return folds[COLUMNS].to_csv(index=False, lineterminator="\n")


def read_folds(path: Path) -> pd.DataFrame:
    """The table in `path`. Raises InputError if it is missing, not of that form or lists a car twice."""
    remedy = "src/create_folds.py makes the table"
    try:
        folds = pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error
    if list(folds.columns) != COLUMNS:
        raise InputError(f"{path}: the columns are {','.join(folds.columns)}, not {','.join(COLUMNS)}; {remedy}")
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
    """The rows of the `cars` that are present, sorted by car.

    Raises InputError unless each of them has a row, and each fold (two or more, numbered from 0) has one.
    """
    cars, source = sorted(set(cars)), folds.attrs.get("source", "the table of folds")
    if missing := sorted(set(cars).difference(folds["car"])):
        raise InputError(f"{source}: lacks {few(missing)}; create it anew or name another with --folds")
    numbers = sorted(set(folds["fold"]))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise InputError(f"{source}: the folds are {few(numbers)}; they must be numbered 0, 1, ... and at least two")
    present = folds[folds["car"].isin(cars)].sort_values("car", ignore_index=True)
    if empty := sorted(set(numbers).difference(present["fold"])):
        raise InputError(
            f"{source}: fold {few(empty)} has none of the {len(cars)} cars present; create folds for these"
        )
    return present


def folds_digest(folds: pd.DataFrame) -> str:
    """SHA-256 in hexadecimal of the sorted `car,fold` lines: who is in which fold, in whatever row order."""
    lines = sorted(f"{car},{fold}\n" for car, fold in zip(folds["car"], folds["fold"], strict=True))
    return sha256("".join(lines).encode()).hexdigest()
