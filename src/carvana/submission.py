"""The CSV that Kaggle scores, `img,rle_mask`, plain or compressed: written, read, checked, scored by row."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import GzipFile
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np

from carvana.errors import InputError
from carvana.log import replacing
from carvana.rle import parse_rle, rle_decode

HEADER = "img,rle_mask"
PHOTO_SIZE = (1280, 1918)
CAR_SHARE = (0.05, 0.60)  # of a photo: 0.13 to 0.36 are the means of the training cars
LEVEL = 4  # of compression: 402 MB for the test set, at 6 it would be 394 MB in three times the time
LISTED = 10
TELLING_RUNS = 100  # from so many on, a mask tells how its pixels are laid out

Rows = Iterable[tuple[str, str]]
Watch = Callable[[Iterable], Iterable]


def read_sample(data: bytes) -> list[str]:
    """Photo names in the order of the bytes of sample_submission.csv; InputError if it is none."""
    name = "sample_submission.csv"
    names = [row[1] for row in _split(iter(data.decode(errors="replace").splitlines()), name)]
    if not names:
        raise InputError(f"{name}: holds no row; download it again")
    if len(set(names)) < len(names):
        raise InputError(f"{name}: {len(names) - len(set(names))} names occur twice; download it again")
    return names


def write_submission(path: Path, rows: Rows) -> int:
    """Writes (photo name, RLE) pairs as they come, in constant memory, and returns their number.

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


def read_submission(path: Path) -> Iterator[tuple[str, str]]:
    """(photo name, RLE) pairs in constant memory; InputError if the file is missing or broken."""
    for _, name, rle in _rows(path):
        yield name, rle


def score(path: Path, truth: Callable[[str], np.ndarray]) -> Iterator[tuple[str, float]]:
    """(photo name, Dice) of each row against `truth(photo name)`, a `bool (height, width)` mask.

    Dice is 2 |A and B| / (|A| + |B|), 1 if both are empty. InputError for a row that is no mask of that size.
    """
    for line, name, rle in _rows(path):
        mask = truth(name)
        try:
            submitted = rle_decode(rle, mask.shape)
        except ValueError as error:
            raise InputError(f"{path}, line {line}, {name}: {error}") from error
        total = np.count_nonzero(mask) + np.count_nonzero(submitted)
        yield name, float(2 * np.count_nonzero(mask & submitted) / total) if total else 1.0


def find_faults(
    path: Path, names: list[str], size: tuple[int, int] = PHOTO_SIZE, watch: Watch = iter
) -> tuple[list[str], list[str]]:
    """What Kaggle would refuse or score wrongly, and what only looks odd: (faults, warnings), a line each.

    names: as in the sample; size: (height, width) of the photos. The first ten findings in rows are listed,
    the others counted. `watch` may wrap the rows in a progress bar. A broken file is a fault, not an exception.
    """
    faults, warnings, order, runs = Listing(), Listing(), Order(names), Runs(size)
    count = 0
    try:
        for line, name, rle in watch(_rows(path)):
            count += 1
            where = f"line {line}, {name:.80}: "
            faults.add(where, order.fault(line, name))
            fault, warning = runs.judge(rle)
            faults.add(where, fault)
            warnings.add(where, warning)
    except InputError as error:
        return [*faults.all(), str(error)], warnings.all()
    for name in order.missing():
        faults.add("", f"{name} is missing")
    whole = Listing()
    whole.add("", f"{count} rows, the sample has {len(names)}" if count != len(names) else None)
    whole.add("", runs.layout_fault())
    return whole.all() + faults.all(), warnings.all()


@dataclass
class Listing:
    """The first ten findings, and how many there were."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, finding: str | None) -> None:
        if finding:
            self.count += 1
            if self.count <= LISTED:
                self.lines.append(where + finding)

    def all(self) -> list[str]:
        more = self.count - len(self.lines)
        return [*self.lines, f"... and {more} more"] if more else self.lines


class Order:
    """Follows the names row by row: each one of the sample, once, in its order."""

    def __init__(self, names: list[str]):
        self.places = {name: place for place, name in enumerate(names)}
        self.lines: dict[str, int] = {}
        self.before = -1

    def fault(self, line: int, name: str) -> str | None:
        if name not in self.places:
            return "not a name of the sample"
        if name in self.lines:
            return f"already in line {self.lines[name]}"
        self.lines[name] = line
        place, before = self.places[name], self.before
        self.before = place
        return f"out of order, line {place + 2} in the sample" if place < before else None

    def missing(self) -> list[str]:
        return [name for name in self.places if name not in self.lines]


class Runs:
    """Looks at the runs row by row: does each make a plausible car in photos of this (height, width)?"""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.steps: list[int] = []

    def judge(self, rle: str) -> tuple[str | None, str | None]:
        """(fault, warning) of one mask."""
        height, width = self.size
        try:
            starts, lengths = parse_rle(rle, height * width)
        except ValueError as error:
            return str(error), None
        if not len(starts):
            return None, "the mask is empty"
        if len(starts) >= TELLING_RUNS:
            distances = np.minimum(np.diff(starts), 2 * width)
            self.steps.append(int(np.bincount(distances).argmax()))
        share, (low, high) = lengths.sum() / (height * width), CAR_SHARE
        return None, None if low <= share <= high else f"the car covers {share:.1%} of the photo"

    def layout_fault(self) -> str | None:
        """Two classic mistakes whose runs are all valid: another width, or column by column.

        A run mostly lies right below the one before it, a row further on. The most frequent distance is 1918
        pixels in 733 of 768 true masks and 1916 or 1917 in the others. A noisy mask has short distances.
        """
        height, width = self.size
        step = int(np.median(self.steps)) if self.steps else width
        if width - 8 <= step <= width or step < width // 4:
            return None
        mistake = "column by column" if step == height else f"for another width than {width}"
        return f"runs follow each other {step} pixels apart: written {mistake}"


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, photo name, RLE) of each row; InputError as in `read_submission`."""
    return _split(_lines(path), str(path))


def _split(lines: Iterator[str], source: str) -> Iterator[tuple[int, str, str]]:
    header = next(lines, None)
    if header is None:
        raise InputError(f"{source}: the file is empty")
    if header.rstrip("\n") != HEADER:
        raise InputError(f'{source}, line 1: the header is "{header.strip():.40}", must be "{HEADER}"')
    for number, line in enumerate(lines, 2):
        name, comma, rle = line.rstrip("\n").partition(",")
        if not comma:
            raise InputError(f'{source}, line {number}: "{name:.40}" has no comma, must be {HEADER}')
        yield number, name, rle


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


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_zip(path: Path) -> IO[bytes]:
    with ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if len(members) != 1:
            raise InputError(f"{path}: holds {len(members)} files, must hold one CSV")
        return archive.open(members[0])


def _create_plain(temporary: Path, name: str) -> IO[bytes]:
    return temporary.open("wb")


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
OPEN = {".csv": _open_plain, ".csv.gz": GzipFile, ".zip": _open_zip}
CREATE = {".csv": _create_plain, ".csv.gz": _create_gzip, ".zip": _create_zip}
