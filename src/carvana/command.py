"""What all scripts share: where the repository is, the options that several of them take, how they fail."""

import ctypes
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from carvana.errors import InputError

# Settings of other libraries, made before these are imported, unless the user has made them.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no call to PyPI
# On a CPU a thread of PyTorch that waits for the others spins 300,000 times before it sleeps, and keeps its core from
# the threads that load photos: prediction had 0.887 of the bare networks' photos a second, with this 0.898 and 0.916.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

STOPPED = 3  # exit status: --hours are over, and the same command continues
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
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
TtaOption = Annotated[
    str | None, typer.Option("--tta", help="Views beside the photo itself: none, hflip, scale1.25, hflip+shift16 ...")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Photos at once on the device.")]
BackendOption = Annotated[
    str,
    typer.Option("--backend", help="What computes: torch, compile (torch.compile), openvino (pip install openvino)."),
]
WorkersOption = Annotated[int, typer.Option("--num-workers", min=0, help="Loader processes.")]
JournalOption = Annotated[Path, typer.Option("--journal", help="The table of submissions.")]

INPUT, RUNS, FOLDS = REPOSITORY / "input", REPOSITORY / "runs", REPOSITORY / "folds" / "folds.csv"
JOURNAL = REPOSITORY / "submissions" / "README.md"


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `1280x1918`."""
    if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)):
        raise InputError(f"--size {text}: give HEIGHTxWIDTH, such as 1280x1918")
    return int(match[1]), int(match[2])


def command_line() -> str:
    """What the user has given, such as `make_submission.py unet_lite0`."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def run(main: Callable) -> None:
    """Runs a script's `main` with its arguments; what the user can mend ends in a line and exit status 2."""
    keep_memory()
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


def keep_memory() -> None:
    """Tells the allocator not to give freed memory back to the system, which would hand it out page by page again.

    A training step on a CPU allocates and frees gigabytes: unet_lite0 at 256x384 took 0.25 s a photo instead of 0.31
    (0.37 with PyTorch's huge pages; means of three, two cores of a virtual AMD EPYC without bf16). glibc only.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
