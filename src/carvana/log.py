"""Output: lines and progress bars for people, JSON for programs, and files that appear whole or not at all."""

import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from carvana.errors import InputError

LOGGER = logging.getLogger("carvana")
LOGGER.setLevel(logging.INFO)


def say(message: str) -> None:
    """Prints one line to stderr, without breaking a progress bar in two."""
    if LOGGER.isEnabledFor(logging.INFO):
        tqdm.write(message, file=sys.stderr)


def silence() -> None:
    """No lines and no bars from this process: another one prints them."""
    LOGGER.setLevel(logging.WARNING)


def progress(items: Iterable, description: str, total: int | None = None, unit: str = "photo"):
    """A bar with rate and time left, renewed five times a second on a terminal, every half minute elsewhere."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    options = {"dynamic_ncols": True, "leave": False, "mininterval": interval, "maxinterval": interval}
    return tqdm(items, description, total, unit=unit, disable=not LOGGER.isEnabledFor(logging.INFO), **options)


@contextmanager
def replacing(path: Path):
    """A temporary path beside `path`, renamed to it when the block ends and removed when the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path):
    """Makes the folder, and locks it against other commands meanwhile. Raises InputError if one has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another command is at work there; wait until it ends") from None
        try:
            yield
        finally:
            with suppress(OSError):  # it holds something
                folder.rmdir()
    finally:
        os.close(descriptor)


def write_records(path: Path, records: list[dict]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_records(path: Path, remedy: str = "bring it back, or begin anew without it") -> list[dict]:
    """The JSON lines of a file; none if it is absent. Raises InputError, with the remedy, if one is none."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path}: not JSON lines ({error}); {remedy}") from None


def read_json(path: Path, remedy: str) -> dict:
    """The content of a file. Raises InputError, with the remedy, if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); {remedy}") from None


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
