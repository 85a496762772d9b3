"""Shards of one prediction joined: parts of a submission, of labels, of soft masks."""

import os
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from carvana.data.archive import Archive
from carvana.data.images import car_of, read_cars
from carvana.errors import InputError
from carvana.log import say
from carvana.provenance import file_digest
from carvana.submission.blocks import KINDS, ROWS, check_format, write_checked
from carvana.submission.csv import read_sample
from carvana.submission.manifest import Manifest, digest_names, manifest_path, order_parts, write_manifest


def merge_parts(parts: list[Path], output: Path, input_root: Path, cars_file: Path | None) -> Manifest:
    """Joins parts of one prediction, all of one kind; the manifest of the whole. A submission is checked.

    Raises InputError as `order_parts` does, or if a submission is of another sample than that in `input_root`.
    """
    ordered, manifest = order_parts(parts)
    check_format(output, manifest.kind)
    kind = KINDS[manifest.kind]
    rows = chain.from_iterable(map(kind.read, ordered))
    if manifest.kind == ROWS:
        names = _sample_names(input_root, cars_file)
        if digest_names(names) != manifest.sample:
            listed = ", ".join(map(str, ordered))
            raise InputError(f"{listed}: of another sample than {input_root}; give theirs with --input")
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            joined = Path(folder) / output.name
            write_checked(joined, rows, names, manifest.size)
            os.replace(joined, output)
    else:
        kind.write(output, rows)
    say(f"joined: {', '.join(map(str, ordered))}")
    facts = {"shard": "1/1", "first": 0, "photos": manifest.sample_photos, "digest": file_digest(output)}
    whole = manifest.model_copy(update=facts)
    write_manifest(manifest_path(output), whole)
    return whole


def _sample_names(input_root: Path, cars_file: Path | None) -> list[str]:
    cars = set(read_cars(cars_file)) if cars_file else None
    names = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    return [name for name in names if cars is None or car_of(Path(name).stem) in cars]
