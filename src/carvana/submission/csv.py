"""The CSV that Kaggle scores, `img,rle_mask`, plain or compressed: written and read row by row."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from carvana.data.tables import only_member, read_rows
from carvana.errors import InputError
from carvana.log import replacing

HEADER = "img,rle_mask"
LEVEL = 4  # of compression: 402 MB for the test set, at 6 it would be 394 MB in three times the time

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


def check_suffix(path: Path) -> None:
    """Raises InputError unless the file's suffix names a format."""
    _by_suffix(path, CREATE)


def write_submission(path: Path, rows: Iterable[Row]) -> int:
    """Writes the rows as they come, in constant memory, and returns their number.

    The suffix of `path` chooses the format: .csv, .csv.gz or .zip; equal rows give equal bytes. The file
    appears when `rows` ends; if that raises, whatever was at `path` stays. InputError for another suffix.
    """
    create = _by_suffix(path, CREATE)
    count = 0
    with replacing(path) as temporary, create(temporary, path.name) as file:
        file.write(f"{HEADER}\n".encode())
        for count, (name, rle) in enumerate(rows, 1):  # noqa: B007
            file.write(f"{name},{rle}\n".encode())
    return count


def read_submission(path: Path) -> Iterator[Row]:
    """The rows, in constant memory; InputError if the file is missing or broken."""
    for _, name, rle in numbered_rows(path):
        yield name, rle


def numbered_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, photo name, RLE) of each row; InputError as in `read_submission`."""
    return _split(_lines(path), str(path))


def _split(lines: Iterator[str], source: str) -> Iterator[tuple[int, str, str]]:
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


def _lines(path: Path) -> Iterator[str]:
    try:
        with io.TextIOWrapper(_by_suffix(path, OPEN)(path), "utf-8", "replace") as file:
            yield from file
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except BROKEN as error:
        raise InputError(f"{path}: cut or not what its suffix says ({error}); write it again") from error


def _by_suffix(path: Path, choices: dict[str, Callable]) -> Callable:
    for suffix, choice in choices.items():
        if path.name.endswith(suffix):
            return choice
    raise InputError(f"{path}: must end in {', '.join(choices)}")


def _open_zip(path: Path) -> IO[bytes]:
    with ZipFile(path) as archive:
        return archive.open(only_member(archive, str(path)))


@contextmanager
def _create_gzip(temporary: Path, name: str) -> Iterator[IO[bytes]]:
    with temporary.open("wb") as raw, GzipFile("", "wb", LEVEL, raw, mtime=0) as file:
        yield file


@contextmanager
def _create_zip(temporary: Path, name: str) -> Iterator[IO[bytes]]:
    member = name.removesuffix(".zip").removesuffix(".csv") + ".csv"
    with (
        ZipFile(temporary, "w", ZIP_DEFLATED, compresslevel=LEVEL) as archive,
        archive.open(member, "w", force_zip64=True) as file,  # dated 1980, unlike `write` and `writestr`
    ):
        yield file


# RuntimeError is a zip with a password, ValueError one whose index points nowhere.
BROKEN = (OSError, EOFError, zlib.error, struct.error, BadZipFile, RuntimeError, ValueError)
OPEN = {".csv": partial(open, mode="rb"), ".csv.gz": GzipFile, ".zip": _open_zip}
CREATE = {".csv": lambda temporary, name: temporary.open("wb"), ".csv.gz": _create_gzip, ".zip": _create_zip}
