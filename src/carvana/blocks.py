"""What a killed prediction continues from: rows in small files, blocks, in a folder beside the submission."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

from accelerate import PartialState

from carvana.errors import InputError, few
from carvana.faults import find_faults
from carvana.log import say
from carvana.provenance import file_digest
from carvana.shards import SAME_JOB, Manifest, find_difference, manifest_path, read_manifest, write_manifest
from carvana.submission import read_submission, write_submission

JOINING = 5e-4  # seconds a row to join, compress and check


class Blocks:
    """The blocks of one output, `<output>.parts/block-00012.csv`; each appears whole or not at all.

    names: of all photos of the output, in order. The folder appears with the first block. Several processes may
    write, each its own blocks.
    """

    def __init__(self, output: Path, manifest: Manifest, names: list[str]):
        self.output, self.manifest, self.names = output, manifest, names
        self.folder = output.with_name(f"{output.name}.parts")

    def check(self) -> None:
        """Raises InputError if the blocks in the folder are not of this manifest; forgets ones that have none.

        A folder without a manifest was being removed when its process was killed.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            return self._forget()
        found = read_manifest(path)
        if difference := find_difference(self.manifest, found, SAME_JOB):
            remedy = "give the same options to continue it, or --overwrite to start anew"
            raise InputError(f"{self.folder}: an unfinished prediction with {difference}: {remedy}")
        if found.commit != self.manifest.commit:
            say(f"note: {self.folder} was begun by other code, commit {found.commit[:12]}")
        return None

    def _forget(self) -> None:
        names = os.listdir(self.folder) if self.folder.exists() else []
        if foreign := [name for name in names if not name.startswith((".", "block-", self.output.name))]:
            raise InputError(f"{self.folder}: holds {few(foreign)}, which no prediction left there; move it away")
        self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def _pieces(self) -> list[list[str]]:
        step = self.manifest.block_size
        return [self.names[first : first + step] for first in range(0, len(self.names), step)]

    def __len__(self) -> int:
        return len(self._pieces)

    def names_of(self, block: int) -> list[str]:
        return self._pieces[block]

    def places_of(self, block: int) -> range:
        """Where a block's photos are in the sample."""
        first = self.manifest.first + block * self.manifest.block_size
        return range(first, first + len(self._pieces[block]))

    def remaining(self) -> list[int]:
        """The blocks that are not there yet."""
        return [block for block in range(len(self)) if not self._path(block).exists()]

    def write(self, block: int, rows: list[tuple[str, str]]) -> None:
        path = self.folder / "manifest.json"
        if not path.exists():
            write_manifest(path, self.manifest)
        write_submission(self._path(block), rows)

    def rows(self) -> Iterator[tuple[str, str]]:
        """The rows of all blocks. Raises InputError for a block that is not as it was written."""
        for block, names in enumerate(self._pieces):
            path = self._path(block)
            rows = list(read_submission(path))
            if [name for name, _ in rows] != names:
                raise InputError(f"{path}: damaged; remove it and give the same command again")
            yield from rows

    def share(self, state: PartialState, overwrite: bool) -> list[int]:
        """The blocks that this process is to predict: neighbours among those that are not there yet.

        Raises InputError as `check` does, unless what is there is to be overwritten.
        """
        if state.is_main_process:
            self.remove() if overwrite else self.check()
        state.wait_for_everyone()
        left = self.remaining()
        state.wait_for_everyone()
        if len(left) < len(self):
            say(f"{self.folder}: {len(self) - len(left)} of {len(self)} blocks are there already")
        number, count = state.process_index, state.num_processes
        return left[len(left) * number // count : len(left) * (number + 1) // count]

    def fill(self, mine: list[int], rows: Iterator[tuple[str, str]], end: float) -> float:
        """Writes blocks until one more, or the joining of all, might not be done at `end`; returns the seconds taken.

        `end` is of the monotonic clock.

        At least one is written, so that every command comes closer to the whole.
        """
        started = before = time.monotonic()
        slowest = 0.0
        for block in mine:
            self.write(block, list(islice(rows, len(self.names_of(block)))))
            now = time.monotonic()
            slowest, before = max(slowest, now - before), now
            if now + slowest + JOINING * len(self.names) > end:
                break
        return max(time.monotonic() - started, 1e-3)

    def finish(self) -> None:
        """Joins the blocks in their folder, checks the result and moves it to the output.

        Its manifest comes beside it, and only then are the blocks forgotten.
        """
        joined = self.folder / self.output.name
        write_checked(joined, self.rows(), self.names, self.manifest.size)
        os.replace(joined, self.output)
        manifest = self.manifest.model_copy(update={"digest": file_digest(self.output)})
        write_manifest(manifest_path(self.output), manifest)
        self.remove()

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:05}.csv"


def write_checked(path: Path, rows: Iterator[tuple[str, str]], names: list[str], size: tuple[int, int]) -> None:
    """Writes a submission and looks for faults in it; raises InputError if there are any."""
    write_submission(path, rows)
    faults, warnings = find_faults(path, names, size)
    for line in warnings + faults:
        say(line)
    if faults:
        raise InputError(f"{path}: failed its own check; do not upload it")
