"""Scores a submission against masks that are known: the mean Dice that Kaggle would give."""

from pathlib import Path, PurePath
from typing import Annotated

import typer

from carvana.archive import Archive, FolderPart, Part, ZipPart
from carvana.command import run
from carvana.errors import InputError
from carvana.images import MASK_NAME, decode_mask
from carvana.log import progress
from carvana.submission import read_submission, score

WORST = 5
LISTED = 10

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The submission: .csv, .csv.gz or .zip.")]
TruthOption = Annotated[
    Path, typer.Option("--truth", help="Folder or zip of <image_id>_mask.gif, or one with train_masks in it.")
]


def main(file: FileArgument, truth: TruthOption):
    """Prints the mean Dice over the photos of FILE and the worst five."""
    part = find_masks(truth)
    masks = {match["image_id"]: match[0] for name in part.names if (match := MASK_NAME.fullmatch(name))}
    count = count_rows(file, masks, truth)
    read = lambda name: read_mask(part, masks[image_id_of(name)])
    scores = list(progress(score(file, read), "score", total=count))
    mean = sum(dice for _, dice in scores) / count
    print(f"mean Dice {mean:.6f} over {count} photos; {len(masks)} masks are known")
    for name, dice in sorted(scores, key=lambda pair: pair[1])[:WORST]:
        print(f"{dice:.6f}  {name}")


def find_masks(truth: Path) -> Part:
    """The part that holds the masks: `truth` itself, or `train_masks` in it."""
    if truth.is_file():
        return ZipPart(truth)
    part = FolderPart(truth)
    return part if any(map(MASK_NAME.fullmatch, part.names)) else Archive(truth).part("train_masks")


def count_rows(file: Path, masks: dict[str, str], truth: Path) -> int:
    """Number of rows; InputError, naming the first ten, where a mask is not known, and if there is no row."""
    names = [name for name, _ in read_submission(file)]
    if not names:
        raise InputError(f"{file}: holds no row")
    unknown = [name for name in names if image_id_of(name) not in masks]
    if unknown:
        lines = [f"{truth}: no mask of {name}, which {file} has a row of" for name in unknown[:LISTED]]
        more = len(unknown) - len(lines)
        raise InputError("\n".join([*lines, f"... and {more} more"] if more else lines))
    return len(names)


def image_id_of(name: str) -> str:
    return PurePath(name).stem


def read_mask(part: Part, name: str):
    """bool (height, width)"""
    return decode_mask(part.read(name), part.where(name))


if __name__ == "__main__":
    run(main)
