"""What a run tells: lines for people, progress bars, and JSON lines for programs."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


def say(message: str) -> None:
    """Prints one line without breaking a progress bar in two."""
    tqdm.write(message, file=sys.stderr)


def progress(items: Iterable, description: str, total: int | None = None, unit: str = "photo", **options):
    """A bar with rate and time left; in a log file, one line every half minute instead of ten a second."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    options = {"dynamic_ncols": True, "leave": False, "mininterval": interval, "maxinterval": interval} | options
    return tqdm(items, desc=description, total=total, unit=unit, **options)


@contextmanager
def replacing(path: Path):
    """Gives a temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_record(path: Path, record: dict) -> None:
    """Adds one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict]:
    """The JSON lines of a file, none if it is absent; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
