"""What all scripts share: where the repository is, the options that several of them take, how they fail."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from carvana.errors import InputError

# Set here because every script imports this module before PyTorch allocates and albumentations is imported; whoever
# set them otherwise has the last word. Tensors in huge pages: a CPU step faults in a tenth of the pages and takes
# 10-20 % less time (unet_lite0, two cores of an AMD EPYC). And no call to PyPI at every start.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = REPOSITORY / "src" / "experiments"

InputOption = Annotated[
    Path, typer.Option("--input", help="Folder with the competition's files, as folders or still zipped.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the training runs.")]
FoldsOption = Annotated[Path, typer.Option("--folds", help="Table of folds: car,pixels,fold.")]
CarsOption = Annotated[
    Path | None, typer.Option("--cars", help="Use only the cars that this file lists, one id a line.")
]
TtaOption = Annotated[str, typer.Option("--tta", help="Views averaged beside the photo itself: none, or hflip.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Photos at once on the device.")]
WorkersOption = Annotated[int, typer.Option("--num-workers", min=0, help="Loader processes.")]

INPUT, RUNS, FOLDS = REPOSITORY / "input", REPOSITORY / "runs", REPOSITORY / "folds" / "folds.csv"


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `1280x1918`."""
    if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)):
        raise InputError(f"--size {text}: give HEIGHTxWIDTH, such as 1280x1918")
    return int(match[1]), int(match[2])


def run(main: Callable) -> None:
    """Runs a script's `main` with its arguments; what the user can mend ends in a line and exit status 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except InputError as error:  # one of a loader process comes wrapped in that process's traceback
        _fail(str(error).rpartition("InputError: ")[2].strip())
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _fail("out of memory: give a smaller --batch-size, or set train.batch_size or data.size lower")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
