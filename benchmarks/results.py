"""Results that are kept, so that a benchmark goes on where it was stopped."""

import json
from pathlib import Path

import library  # noqa: F401

from carvana.config import differences
from carvana.errors import InputError
from carvana.log import say, write_json


def kept_result(path: Path, settings: dict) -> dict | None:
    """The result in `path`, or None if there is none. Raises InputError if it is of other settings."""
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    if changed := differences(result["settings"], _as_kept(settings)):
        raise InputError(f"{path}: of other settings ({'; '.join(changed)}); --overwrite it or choose another --output")
    say(f"{path}: result of commit {result['machine']['commit'][:7]} reused; --overwrite trains again")
    return result


def keep_result(path: Path, result: dict, settings: dict) -> dict:
    """Writes the result with its settings, and returns both as they will be read again."""
    kept = _as_kept(result | {"settings": settings})
    write_json(path, kept)
    return kept


def _as_kept(content: dict) -> dict:
    """Tuples become lists."""
    return json.loads(json.dumps(content))
