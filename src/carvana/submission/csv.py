"""The CSV that Kaggle scores, `img,rle_mask`, plain or compressed: written and read row by row."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from carvana.data.lines import read_lines, write_lines
from carvana.data.tables import read_rows
from carvana.errors import InputError

HEADER = "img,rle_mask"

Row = tuple[str, str]
"""A photo's file name, and its mask's run lengths."""


def read_sample(data: bytes) -> list[str]:
    """Photo names in the order of the bytes of sample_submission.csv; InputError if it is none."""
    name = "sample_submission.csv"
    header, *rows = read_rows(data, name, "download it again")
    _check_header(",".join(header), name)
    names = [row[0] for row in rows]
    if short := [row[0] for row in rows if len(row) < 2]:
        raise InputError(f'{name}: "{short[0]:.40}" has no comma, must be {HEADER}')
    if not names:
        raise InputError(f"{name}: holds no row; download it again")
    if len(set(names)) < len(names):
        raise InputError(f"{name}: {len(names) - len(set(names))} names occur twice; download it again")
    return names


def write_submission(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows as they come, in constant memory.

    The suffix of `path` chooses the format: .csv, .csv.gz or .zip; equal rows give equal bytes. The file
    appears when `rows` ends; if that raises, whatever was at `path` stays. InputError for another suffix.
    """
    write_lines(path, chain([HEADER], (f"{name},{rle}" for name, rle in rows)))


def read_submission(path: Path) -> Iterator[Row]:
    """The rows, in constant memory; InputError if the file is missing or broken."""
    for _, name, rle in numbered_rows(path):
        yield name, rle


def numbered_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, photo name, RLE) of each row; InputError as in `read_submission`."""
    lines, source = read_lines(path), str(path)
    header = next(lines, None)
    if header is None:
        raise InputError(f"{source}: the file is empty")
    _check_header(header.rstrip("\n"), source)
    for number, line in enumerate(lines, 2):
        name, comma, rle = line.rstrip("\n").partition(",")
        if not comma:
            raise InputError(f'{source}, line {number}: "{name:.40}" has no comma, must be {HEADER}')
        yield number, name, rle


def _check_header(header: str, source: str) -> None:
    if header.startswith("PK\3\4"):
        raise InputError(f"{source}: is a zip file; name it .zip")
    if header != HEADER:
        what = "begins with a byte order mark:" if header.startswith("\ufeff") else "is"
        raise InputError(f'{source}, line 1: the header {what} {json.dumps(header[:40])}, must be "{HEADER}"')
