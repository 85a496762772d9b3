"""What Kaggle would refuse in a submission or score wrongly, found before it is uploaded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from carvana.errors import InputError
from carvana.rle import parse_rle
from carvana.submission import numbered_rows

PHOTO_SIZE = (1280, 1918)
CAR_SHARE = (0.05, 0.60)  # of a photo: 0.13 to 0.36 are the means of the training cars
LISTED = 10
TELLING_RUNS = 100  # from so many on, a mask tells how its pixels are laid out

Watch = Callable[[Iterable], Iterable]


def find_faults(
    path: Path, names: list[str], size: tuple[int, int] = PHOTO_SIZE, watch: Watch = iter
) -> tuple[list[str], list[str]]:
    """What Kaggle would refuse or score wrongly, and what only looks odd: (faults, warnings), a line each.

    names: as in the sample; size: (height, width) of the photos. The first ten findings in rows are listed,
    the others counted. `watch` may wrap the rows in a progress bar. Nothing is raised for a broken file.
    """
    faults, warnings, order, runs = Listing(), Listing(), Order(names), Runs(size)
    count = 0
    try:
        for line, name, rle in watch(numbered_rows(path)):
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
