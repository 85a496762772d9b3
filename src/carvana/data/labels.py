"""Labels of photos without masks, as networks gave them: rows of `img,rle_mask,expected_dice,agreement,disputed`."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from carvana.data.lines import read_lines, write_lines
from carvana.errors import InputError

REMEDY = "make them with src/make_submission.py --labels"


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
