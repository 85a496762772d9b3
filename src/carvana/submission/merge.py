"""Shards of one prediction joined: parts of a submission, of labels, of soft masks."""

import os
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from carvana.data.archive import Archive
from carvana.data.images import car_of, read_cars
from carvana.data.lines import check_suffix
from carvana.errors import InputError
from carvana.log import say
from carvana.provenance import file_digest
from carvana.submission.blocks import KINDS, ROWS, check_format, write_checked
from carvana.submission.csv import read_sample, read_submission
from carvana.submission.manifest import Manifest, digest_names, manifest_path, order_parts, write_manifest


def merge_parts(parts: list[Path], output: Path, input_root: Path, cars_file: Path | None) -> int:
    """Joins parts of one prediction and checks the whole; returns the number of rows.

    Raises InputError as `order_parts` does, or if they are of another sample than that in `input_root`.
    """
    check_suffix(output)
    ordered, manifest = order_parts(parts)
    cars = set(read_cars(cars_file)) if cars_file else None
    names = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    names = [name for name in names if cars is None or car_of(Path(name).stem) in cars]
    if digest_names(names) != manifest.sample:
        listed = ", ".join(map(str, ordered))
        raise InputError(f"{listed}: of another sample than {input_root}; give theirs with --input")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        joined = Path(folder) / output.name
        write_checked(joined, chain.from_iterable(map(read_submission, ordered)), names, manifest.size)
        os.replace(joined, output)
    return _write_manifest(output, ordered, manifest)


def merge_labels(parts: list[Path], output: Path) -> int:
    """Joins the labels or soft masks that parts of one prediction have left; returns the number of photos.

    Raises InputError as `order_parts` does, or if the parts are of a submission.
    """
    ordered, manifest = order_parts(parts)
    if manifest.kind == ROWS:
        raise InputError(f"{ordered[0]}: a part of a submission, not of labels; submission.py merge joins those")
    check_format(output, manifest.kind)
    kind = KINDS[manifest.kind]
    kind.write(output, chain.from_iterable(map(kind.read, ordered)))
    return _write_manifest(output, ordered, manifest)


def _write_manifest(output: Path, ordered: list[Path], manifest: Manifest) -> int:
    whole = {"shard": "1/1", "first": 0, "photos": manifest.sample_photos, "digest": file_digest(output)}
    write_manifest(manifest_path(output), manifest.model_copy(update=whole))
    say(f"joined: {', '.join(map(str, ordered))}")
    return manifest.sample_photos
