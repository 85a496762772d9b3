"""Checks a submission before it is uploaded: format, names and their order, runs, plausible areas."""

from pathlib import Path
from typing import Annotated

import typer

from carvana.archive import Archive
from carvana.command import INPUT, InputOption, parse_size, run
from carvana.faults import find_faults
from carvana.log import progress
from carvana.submission import read_sample

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The submission: .csv, .csv.gz or .zip.")]
SampleOption = Annotated[
    Path | None, typer.Option("--sample", help="Another sample_submission.csv than the input folder's.")
]
SizeOption = Annotated[str, typer.Option("--size", help="Height and width of the photos.")]


def main(
    file: FileArgument,
    sample: SampleOption = None,
    input_root: InputOption = INPUT,
    size: SizeOption = "1280x1918",
):
    """Says OK, or lists the first ten faults and exits with status 1; what only looks odd is a warning."""
    height, width = parse_size(size)
    names = read_sample(read_sample_bytes(sample, input_root))
    watch = lambda rows: progress(rows, "check", total=len(names), unit="row")
    faults, warnings = find_faults(file, names, (height, width), watch)
    for warning in warnings:
        print(f"warning: {warning}")
    for fault in faults:
        print(f"fault: {fault}")
    if faults:
        print(f"NOT OK: {file}")
        raise typer.Exit(1)
    print(f"OK: {len(names)} rows, named and ordered as in the sample, all runs inside {width} x {height}")


def read_sample_bytes(sample: Path | None, input_root: Path) -> bytes:
    if sample is None:
        return Archive(input_root).read_file("sample_submission.csv")
    return Archive(sample.parent).read_file(sample.name.removesuffix(".zip"))


if __name__ == "__main__":
    run(main)
