"""What Kaggle would refuse in a submission or score wrongly, and the score where masks are known, before an upload."""

from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
import torch

from carvana.data.archive import Archive
from carvana.data.decoding import decode_mask
from carvana.data.geometry import Size
from carvana.data.images import MASK_NAME
from carvana.data.parts import FolderPart, Part, ZipPart
from carvana.data.rle import parse_rle, rle_decode
from carvana.errors import InputError, few
from carvana.evaluation.metrics import dice
from carvana.log import progress
from carvana.submission.csv import numbered_rows, read_sample, read_submission

CAR_SHARE = (0.05, 0.60)  # of a photo: 0.13 to 0.36 are the means of the training cars
FULL = 0.95  # of a photo: a mask that is no car
LISTED, WORST = 10, 5
TELLING_RUNS = 100  # from so many on, a mask tells how its pixels are laid out


def check_lines(file: Path, sample: Path, size: Size, allow_empty: bool = False) -> tuple[list[str], bool]:
    """What people read of a check, and whether Kaggle would take the file. `sample` may lie in a zip, as on Kaggle."""
    names = read_sample(Archive(sample.parent).read_file(sample.name.removesuffix(".zip")))
    faults, warnings = find_faults(file, names, size, allow_empty)
    lines = [f"warning: {warning}" for warning in warnings] + [f"fault: {fault}" for fault in faults]
    if faults:
        return [*lines, f"NOT OK: {file}"], False
    height, width = size
    lines.append(f"OK: {len(names)} rows, named and ordered as in the sample, all runs inside {width} x {height}")
    return lines, True


def find_faults(path: Path, names: list[str], size: Size, allow_empty: bool = False) -> tuple[list[str], list[str]]:
    """What Kaggle would refuse or score wrongly, and what only looks odd: (faults, warnings), a line each.

    names: as in the sample; size: (height, width) of the photos. The first ten findings in rows are listed,
    the others counted. Nothing is raised for a broken file. With `allow_empty` masks that are mostly empty or full, or
    all alike, only look odd.
    """
    faults, warnings, order, runs = Listing(), Listing(), Order(names), Runs(size)
    count = 0
    try:
        for line, name, rle in progress(numbered_rows(path), "check", total=len(names), unit="row"):
            count += 1
            shown = name if name.isprintable() and name == name.strip() else ascii(name)  # shows what is not to be seen
            where = f"line {line}, {shown:.80}: "
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
    if odd := runs.degeneracy():
        (warnings if allow_empty else whole).add("", odd if allow_empty else f"{odd}; --allow-empty if it is meant so")
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

    def __init__(self, size: Size):
        self.size = size
        self.steps: list[int] = []
        self.count = self.empty = self.full = 0
        self.kinds: set[int] = set()

    def judge(self, rle: str) -> tuple[str | None, str | None]:
        """(fault, warning) of one mask."""
        height, width = self.size
        try:
            starts, lengths = parse_rle(rle, height * width)
        except ValueError as error:
            return str(error), None
        self.count += 1
        self.empty += not len(starts)
        self.full += lengths.sum() > FULL * height * width
        self.kinds.add(hash(rle))
        if not len(starts):
            return None, "the mask is empty"
        if len(starts) >= TELLING_RUNS:
            distances = np.minimum(np.diff(starts), 2 * width)
            self.steps.append(int(np.bincount(distances).argmax()))
        share, (low, high) = lengths.sum() / (height * width), CAR_SHARE
        return None, None if low <= share <= high else f"the car covers {share:.1%} of the photo"

    def degeneracy(self) -> str | None:
        """What masks of a broken network have in common."""
        for number, what in ((self.empty, "empty"), (self.full, "full")):
            if number > self.count / 2:
                return f"{number} of {self.count} masks are {what}"
        return f"all {self.count} masks are alike" if self.count > 1 == len(self.kinds) else None

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


def score_lines(file: Path, truth: Path) -> list[str]:
    """What people read of a score: the mean and the worst photos. `truth` holds masks, or `train_masks`.

    Raises InputError if the file has no row, one whose mask is not known, or one that is no mask of that size.
    """
    part = find_masks(truth)
    masks = {match["image_id"]: match[0] for name in part.names if (match := MASK_NAME.fullmatch(name))}
    names = [name for name, _ in read_submission(file)]
    if not names:
        raise InputError(f"{file}: holds no row")
    if unknown := [name for name in names if PurePath(name).stem not in masks]:
        raise InputError(f"{truth}: no masks of {few(unknown)}, which {file} has rows of")

    scores = []
    for line, name, rle in progress(numbered_rows(file), "score", total=len(names)):
        mask = masks[PurePath(name).stem]
        known = decode_mask(part.read(mask), part.where(mask))
        try:
            submitted = rle_decode(rle, known.shape)
        except ValueError as error:
            raise InputError(f"{file}, line {line}, {name}: {error}") from error
        scores.append((name, dice(torch.from_numpy(submitted), torch.from_numpy(known))))
    mean = sum(value for _, value in scores) / len(scores)
    lines = [f"mean Dice {mean:.6f} over {len(scores)} photos; {len(masks)} masks are known"]
    return lines + [f"{value:.6f}  {name}" for name, value in sorted(scores, key=lambda pair: pair[1])[:WORST]]


def find_masks(truth: Path) -> Part:
    """The part that holds the masks: `truth` itself, or `train_masks` in it."""
    part = ZipPart(truth) if truth.is_file() else FolderPart(truth)
    return part if any(map(MASK_NAME.fullmatch, part.names)) else Archive(truth).part("train_masks")
