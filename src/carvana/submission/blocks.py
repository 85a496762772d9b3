"""Blocks: the rows of a prediction in small files beside the submission, from which a killed command continues."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from glob import escape
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from carvana.data.labels import LABELS, SOFT, Label, read_labels, write_labels
from carvana.data.lines import check_suffix
from carvana.data.soft import read_soft, write_soft
from carvana.errors import InputError, few
from carvana.log import say
from carvana.provenance import file_digest
from carvana.submission.checker import find_faults
from carvana.submission.csv import Row, read_submission, write_submission
from carvana.submission.manifest import (
    PLACE,
    PREDICTION,
    SAME_JOB,
    Manifest,
    find_difference,
    manifest_path,
    read_manifest,
    write_manifest,
)  # fmt: skip


class Kind(NamedTuple):
    """What a photo leaves in a file: in a block's, and in the one that they are joined to."""

    suffix: str  # of a block
    write: Callable[[Path, Iterable[tuple]], object]
    read: Callable[[Path], Iterator[tuple]]


ROWS = "rows"
KINDS = {
    ROWS: Kind(".csv", write_submission, read_submission),
    LABELS: Kind(".labels.csv", write_labels, read_labels),
    SOFT: Kind(".soft.zip", write_soft, read_soft),
}
Rows = dict[str, Row | Label | tuple[str, bytes]]
"""Of a photo, by kind."""
JOINING = 5e-4  # seconds a row to join, compress and check


class Blocks:
    """The blocks of one output, `<output>.parts/block-00012.csv`; each appears whole or not at all.

    names: of all photos of the output, in order. Several processes may fill the folder at once, each its own blocks.
    What is made beside the output has its path in `beside`, by kind, and `seen_cars` in its manifest.
    """

    def __init__(
        self, output: Path, manifest: Manifest, names: list[str], beside: dict[str, Path],
        seen_cars: list[str] | None = None,
    ):  # fmt: skip
        self.output, self.manifest, self.names = output, manifest, names
        self.beside, self.seen_cars = beside, seen_cars
        self.kinds = (ROWS, *beside)
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
        if begun.batch_size != self.manifest.batch_size:
            say(f"note: {self.folder} was begun with --batch-size {begun.batch_size}")
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

    def write(self, block: int, photos: list[Rows]) -> None:
        if not (path := self.folder / "manifest.json").exists():
            write_manifest(path, self.manifest)
        for kind in self.kinds:
            KINDS[kind].write(self._path(block, kind), (rows[kind] for rows in photos))

    def rows(self, kind: str = ROWS) -> Iterator[Row | Label | tuple[str, bytes]]:
        """Those of all blocks. Raises InputError for a block that is not as it was written."""
        for block, names in enumerate(self._pieces):
            path = self._path(block, kind)
            rows = list(KINDS[kind].read(path))
            if [PurePath(row[0]).stem for row in rows] != [PurePath(name).stem for name in names]:
                raise InputError(f"{path}: damaged; remove it and give the same command again")
            yield from rows

    def begin(self, overwrite: bool) -> list[int] | None:
        """The blocks that are missing; None if all files of this prediction are there, as they were written.

        Removes what a killed process left of the files that it was joining. Unless earlier ones are to be overwritten,
        raises InputError as `check` does, or if a file of another shard or of other networks is where one of this
        prediction would be.
        """
        self.clear() if overwrite else self.check()
        for path in self.beside.values():
            for unfinished in path.parent.glob(f".{escape(path.name)}.*.tmp"):
                unfinished.unlink()
        if not overwrite and not (self.folder / "manifest.json").exists() and self._finished():
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        missing = self.missing()
        if len(missing) < len(self):
            say(f"{self.folder}: {len(self) - len(missing)} of {len(self)} blocks are there already")
        return missing

    def _finished(self) -> bool:
        files = {ROWS: self.output} | self.beside
        written = {kind: path for kind, path in files.items() if path.exists() and manifest_path(path).exists()}
        manifests = {kind: read_manifest(manifest_path(path)) for kind, path in written.items()}
        for kind, path in written.items():
            wanted = self.manifest.model_copy(update={"kind": kind})
            if difference := find_difference(wanted, manifests[kind], (*PLACE, *PREDICTION, "kind")):
                raise InputError(f"{path}: finished, with {difference}; remove it, or give another name or --overwrite")
        return written == files and all(file_digest(path) == manifests[kind].digest for kind, path in files.items())

    def fill(self, claimed: list[int], rows: Iterator[Rows], end: float) -> float:
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
        """Joins and checks the submission in the blocks' folder, joins what is beside it, and moves it to the output.

        Its manifest comes beside it, and only then are the blocks removed.
        """
        joined = self.folder / self.output.name
        write_checked(joined, self.rows(), self.names, self.manifest.size)
        for kind, path in self.beside.items():
            KINDS[kind].write(path, self.rows(kind))
            facts = {"kind": kind, "seen_cars": self.seen_cars, "digest": file_digest(path)}
            write_manifest(manifest_path(path), self.manifest.model_copy(update=facts))
        os.replace(joined, self.output)
        manifest = self.manifest.model_copy(update={"digest": file_digest(self.output)})
        write_manifest(manifest_path(self.output), manifest)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int, kind: str) -> Path:
        return self.folder / f"block-{block:05}{KINDS[kind].suffix}"


def check_format(path: Path, kind: str) -> None:
    """Raises InputError unless the file's suffix names a format of its kind."""
    if kind != SOFT:
        check_suffix(path)
    elif path.suffix != ".zip":
        raise InputError(f"{path}: must end in .zip")


def check_names(output: Path | None, beside: dict[str, Path]) -> None:
    """Raises InputError unless each file has a suffix of its kind, and a name of its own."""
    for kind, path in beside.items():
        if [output, *beside.values()].count(path) > 1:
            raise InputError(f"--{kind} {path}: the same file as another; give another name")
    for kind, path in (({ROWS: output} if output else {}) | beside).items():
        check_format(path, kind)


def write_checked(path: Path, rows: Iterator[Row], names: list[str], size: tuple[int, int]) -> None:
    """Writes a submission and looks for faults in it; raises InputError if there are any."""
    write_submission(path, rows)
    faults, warnings = find_faults(path, names, size, allow_empty=True)
    for line in warnings + faults:
        say(line)
    if faults:
        raise InputError(f"{path.name}: failed its own check, see above; it was not written")
