"""Joins the parts that `src/make_submission.py --shard i/n` wrote, after a check that they are one prediction.

`python src/merge_submissions.py part-1.csv.gz part-2.csv.gz --output submissions/unet_lite0.csv.gz`
"""

import os
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from carvana.archive import Archive
from carvana.blocks import write_checked
from carvana.command import INPUT, RUNS, CarsOption, InputOption, RunsOption, command_line, run
from carvana.errors import InputError
from carvana.images import car_of, read_cars
from carvana.journal import note_submission
from carvana.log import say
from carvana.provenance import file_digest
from carvana.shards import digest_names, manifest_path, order_parts, write_manifest
from carvana.submission import check_suffix, read_sample, read_submission


def main(
    parts: Annotated[list[Path], typer.Argument(help="The parts, in any order, each beside its manifest.")],
    output: Annotated[Path, typer.Option(help="The CSV: .csv, .csv.gz or .zip.")],
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
) -> None:
    check_suffix(output)
    ordered, manifest = order_parts(parts)
    names = read_names(input_root, cars)
    if digest_names(names) != manifest.sample:
        raise InputError(
            f"{', '.join(map(str, ordered))}: of another sample than {input_root}; give theirs with --input"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        joined = Path(folder) / output.name
        write_checked(joined, chain.from_iterable(map(read_submission, ordered)), names, manifest.size)
        os.replace(joined, output)
    whole = {"shard": "1/1", "first": 0, "photos": len(names), "digest": file_digest(output)}
    write_manifest(manifest_path(output), manifest.model_copy(update=whole))
    if cars is None:
        note_submission(output, runs, command_line())
    say(f"joined: {', '.join(map(str, ordered))}")
    print(f"{output}: {len(names)} rows of {len(ordered)} parts, checked")


def read_names(input_root: Path, cars: Path | None) -> list[str]:
    """The sample's names, in its order; of the cars that the file lists, or of all."""
    names = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    chosen = set(read_cars(cars)) if cars else None
    return [name for name in names if chosen is None or car_of(Path(name).stem) in chosen]


if __name__ == "__main__":
    run(main)
