"""Results that are kept, so that a benchmark goes on where it was stopped."""

import json
from collections.abc import Callable
from pathlib import Path

from carvana.config import differences
from carvana.errors import InputError
from carvana.log import say, write_json


def reuse(path: Path, settings: dict, overwrite: bool, compute: Callable[[], dict]) -> dict:
    """The result in `path`, with its settings; computed and written if it is not there or is to be overwritten.

    Raises InputError if it is of other settings.
    """
    if overwrite or not path.exists():
        write_json(path, compute() | {"settings": settings})
        return json.loads(path.read_text())
    result = json.loads(path.read_text())
    if changed := differences(result["settings"], json.loads(json.dumps(settings))):  # tuples are lists there
        raise InputError(f"{path}: of other settings ({'; '.join(changed)}); --overwrite it or choose another --output")
    say(f"{path}: result of commit {result['machine']['commit'][:7]} reused; --overwrite begins again")
    return result
