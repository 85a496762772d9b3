"""Blocks: the rows of a prediction in small files beside the submission, from which a killed command continues."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from carvana.data.archive import Archive
from carvana.data.images import car_of, read_cars
from carvana.data.labels import Label, read_labels, write_labels
from carvana.data.lines import check_suffix
from carvana.errors import InputError, few
from carvana.log import say
from carvana.provenance import file_digest
from carvana.submission.checker import find_faults
from carvana.submission.csv import Row, read_sample, read_submission, write_submission
from carvana.submission.manifest import (
    SAME_JOB,
    Manifest,
    digest_names,
    find_difference,
    manifest_path,
    order_parts,
    read_manifest,
    write_manifest,
)  # fmt: skip

ROWS, LABELS = "", ".labels"  # kinds of blocks
JOINING = 5e-4  # seconds a row to join, compress and check


class Blocks:
    """The blocks of one output, `<output>.parts/block-00012.csv`; each appears whole or not at all.

    names: of all photos of the output, in order. Several processes may fill the folder at once, each its own blocks.
    With `labels`, the path of their file, rows are labels, and `seen_cars` go into the manifest of that file.
    """

    def __init__(
        self, output: Path, manifest: Manifest, names: list[str], labels: Path | None = None,
        seen_cars: list[str] | None = None,
    ):  # fmt: skip
        self.output, self.manifest, self.names = output, manifest, names
        self.labels, self.seen_cars = labels, seen_cars
        self.kinds = (ROWS, LABELS) if labels else (ROWS,)
        self.folder = output.with_name(f"{output.name}.parts")

    def check(self) -> None:
        """Raises InputError if the blocks in the folder are of another prediction, or what it holds is something else.

        A folder without a manifest was being removed when its process was killed; this removes it.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            names = os.listdir(self.folder)
            if foreign := [name for name in names if not name.startswith((".", "block-", self.output.name))]:
                raise InputError(f"{self.folder}: holds {few(foreign)}, which no prediction left there; move it away")
            return self.clear()
        begun = read_manifest(path)
        if difference := find_difference(self.manifest, begun, SAME_JOB):
            remedy = "give the same options to continue it, or --overwrite to start anew"
            raise InputError(f"{self.folder}: an unfinished prediction with {difference}: {remedy}")
        if begun.commit != self.manifest.commit:
            say(f"note: {self.folder} was begun by other code, commit {begun.commit[:12]}")
        if begun.device != self.manifest.device:
            say(f"note: {self.folder} was begun on another device or in another precision, {begun.device}")
        return None

    def clear(self) -> None:
        """Removes what the folder holds, not the folder, which is locked."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @cached_property
    def _pieces(self) -> list[list[str]]:
        step = self.manifest.block_size
        return [self.names[first : first + step] for first in range(0, len(self.names), step)]

    def __len__(self) -> int:
        return len(self._pieces)

    def places_of(self, block: int) -> range:
        """Where a block's photos are in the sample."""
        first = self.manifest.first + block * self.manifest.block_size
        return range(first, first + len(self._pieces[block]))

    def missing(self) -> list[int]:
        """The blocks that are not written yet."""
        return [block for block in range(len(self)) if not all(self._path(block, kind).exists() for kind in self.kinds)]

    def write(self, block: int, rows: list[Row | Label]) -> None:
        if not (path := self.folder / "manifest.json").exists():
            write_manifest(path, self.manifest)
        write_submission(self._path(block, ROWS), (row[:2] for row in rows))
        if self.labels:
            write_labels(self._path(block, LABELS), rows)

    def rows(self, kind: str = ROWS, read: Callable = read_submission) -> Iterator[Row | Label]:
        """The rows of all blocks. Raises InputError for a block that is not as it was written."""
        for block, names in enumerate(self._pieces):
            path = self._path(block, kind)
            rows = list(read(path))
            if [row[0] for row in rows] != names:
                raise InputError(f"{path}: damaged; remove it and give the same command again")
            yield from rows

    def begin(self, overwrite: bool) -> list[int]:
        """The blocks that are missing. Raises InputError as `check` does, unless earlier ones are to be overwritten."""
        self.clear() if overwrite else self.check()
        missing = self.missing()
        if len(missing) < len(self):
            say(f"{self.folder}: {len(self) - len(missing)} of {len(self)} blocks are there already")
        return missing

    def fill(self, claimed: list[int], rows: Iterator[Row | Label], end: float) -> float:
        """Writes blocks until one more, or the joining of all, might not be done at `end`; returns the seconds taken.

        `end` is of the monotonic clock, which all processes of a machine share.
        """
        started = before = time.monotonic()
        slowest = 0.0
        for block in claimed:
            if before + slowest + JOINING * len(self.names) * len(self.kinds) > end:
                break
            self.write(block, list(islice(rows, len(self._pieces[block]))))
            now = time.monotonic()
            slowest, before = max(slowest, now - before), now
        return max(before - started, 1e-3)

    def finish(self) -> None:
        """Joins the blocks in their folder, checks the result and moves it to the output, after the labels.

        Its manifest comes beside it, and only then are the blocks removed.
        """
        joined = self.folder / self.output.name
        write_checked(joined, self.rows(), self.names, self.manifest.size)
        if self.labels:
            write_labels(self.labels, self.rows(LABELS, read_labels))
            facts = {"seen_cars": self.seen_cars, "digest": file_digest(self.labels)}
            write_manifest(manifest_path(self.labels), self.manifest.model_copy(update=facts))
        os.replace(joined, self.output)
        manifest = self.manifest.model_copy(update={"digest": file_digest(self.output)})
        write_manifest(manifest_path(self.output), manifest)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int, kind: str) -> Path:
        return self.folder / f"block-{block:05}{kind}.csv"


def write_checked(path: Path, rows: Iterator[Row], names: list[str], size: tuple[int, int]) -> None:
    """Writes a submission and looks for faults in it; raises InputError if there are any."""
    write_submission(path, rows)
    faults, warnings = find_faults(path, names, size, allow_empty=True)
    for line in warnings + faults:
        say(line)
    if faults:
        raise InputError(f"{path}: failed its own check; do not upload it")


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
    return _describe_whole(output, ordered, manifest)


def merge_labels(parts: list[Path], output: Path) -> int:
    """Joins the labels that parts of one prediction have left; returns the number of rows.

    Raises InputError as `order_parts` does, or if a part holds no labels.
    """
    check_suffix(output)
    ordered, manifest = order_parts(parts)
    write_labels(output, chain.from_iterable(map(read_labels, ordered)))
    return _describe_whole(output, ordered, manifest)


def _describe_whole(output: Path, ordered: list[Path], manifest: Manifest) -> int:
    whole = {"shard": "1/1", "first": 0, "photos": manifest.sample_photos, "digest": file_digest(output)}
    write_manifest(manifest_path(output), manifest.model_copy(update=whole))
    say(f"joined: {', '.join(map(str, ordered))}")
    return manifest.sample_photos
