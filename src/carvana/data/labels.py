"""Labels of photos without masks, as networks gave them: rows of `img,rle_mask,expected_dice,agreement,disputed`.

And where such files come from, by the `.json` beside them.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from carvana.data.geometry import Size
from carvana.data.lines import read_lines, write_lines
from carvana.errors import InputError
from carvana.provenance import file_digest

LABELS, SOFT = "labels", "soft"  # kinds of files: rows of this module, and masks of `soft`
REMEDY = "make it with src/make_submission.py --labels or --soft, or src/evaluate.py --soft"


class Label(NamedTuple):
    img: str  # the photo's file name
    rle_mask: str
    expected_dice: float  # of the mask, by the probabilities that it was cut from
    agreement: float  # mean Dice of each network's own mask with it
    disputed: str  # run lengths of the pixels on which the networks do not all agree


HEADER = ",".join(Label._fields)


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """Whole or not at all, in the format of the suffix; equal labels give equal bytes."""
    lines = (f"{img},{rle},{dice:.6f},{agreement:.6f},{disputed}" for img, rle, dice, agreement, disputed in labels)
    write_lines(path, chain([HEADER], lines))


def read_labels(path: Path) -> Iterator[Label]:
    """The labels, in constant memory. Raises InputError if the file is missing, broken or of something else."""
    for number, line in enumerate(read_lines(path), 1):
        try:
            img, rle, dice, agreement, disputed = line.rstrip("\n").split(",")
            if number > 1:
                yield Label(img, rle, float(dice), float(agreement), disputed)
            elif line.rstrip("\n") != HEADER:
                raise ValueError
        except ValueError:
            raise InputError(f"{path}, line {number}: not {HEADER}; {REMEDY}") from None


class Source(NamedTuple):
    """A file of labels or soft masks, as the `.json` beside it knows it."""

    path: Path
    kind: str  # LABELS or SOFT
    size: Size  # of the photos
    digest: str  # of the file
    seen_cars: list[str]  # all that its networks have learnt from
    out_of_fold: bool  # each photo by networks that never saw its car


def read_source(path: Path, setting: str) -> Source:
    """What the `.json` says. Raises InputError, for `setting`, if the file is not as it was written."""
    try:
        facts = json.loads(path.with_name(f"{path.name}.json").read_text())
        digest, seen_cars, size = facts["digest"], list(facts["seen_cars"]), tuple(facts["size"])
        if (kind := facts["kind"]) not in (LABELS, SOFT):
            raise ValueError(f"it is of {kind}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{setting}: {path}.json: missing, or not beside labels ({error}); {REMEDY}") from None
    if not path.is_file() or file_digest(path) != digest:
        raise InputError(f"{setting}: {path}: missing, cut or not the file of its manifest; fetch it, or {REMEDY}")
    return Source(path, kind, size, digest, seen_cars, facts.get("out_of_fold", False))
