"""What all scripts share: paths of the repository, common options, set-up, and how a script fails.

Nothing imported here takes long, and scripts import PyTorch inside their `main`, so that `--help` is quick.
"""

import ctypes
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from carvana.errors import InputError, scarcity

STOPPED = 3  # exit status: --hours are over, and the same command continues
REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = REPOSITORY / "src" / "experiments"
INPUT, RUNS, FOLDS = REPOSITORY / "input", REPOSITORY / "runs", REPOSITORY / "folds" / "folds.csv"
JOURNAL = REPOSITORY / "submissions" / "log.jsonl"

InputOption = Annotated[Path, typer.Option("--input", help="The competition's files, in folders or still zipped.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the training runs.")]
FoldsOption = Annotated[Path, typer.Option("--folds", help="Table of folds: car,pixels,fold.")]
CarsOption = Annotated[Path | None, typer.Option("--cars", help="Only the cars that this file lists, one id a line.")]
OverridesOption = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting: optim.lr=3e-4.")]
TtaOption = Annotated[str | None, typer.Option("--tta", help="Other views: hflip, hflip+scale1.25 ... or none.")]
NetworksOption = Annotated[
    str | None, typer.Option("--fold", help="Which networks: all trained folds, 0,2, none (of all cars), or all,none.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Photos at once on the device.")]
WorkersOption = Annotated[int, typer.Option("--num-workers", min=0, help="Threads that load photos.")]
DevicesOption = Annotated[
    int | None, typer.Option("--devices", min=1, help="GPUs that share the work, by default all; processes on a CPU.")
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Of the networks: auto, bf16, fp16 or fp32.")]
BackendOption = Annotated[str, typer.Option("--backend", help="torch, compile (torch.compile) or openvino.")]
ExperimentsArgument = Annotated[list[str], typer.Argument(help="Names of experiments, as under runs/.")]
NamesArgument = Annotated[list[str] | None, typer.Argument(help="Trained experiments, as under runs/; or --ensemble.")]
EnsembleOption = Annotated[Path | None, typer.Option("--ensemble", help="ensemble.json, instead of names.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Probability of a car pixel; by default oof.json's.")
]
JournalOption = Annotated[Path, typer.Option("--journal", help="The log of submissions.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The submission: .csv, .csv.gz or .zip.")]
SizeOption = Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH of the photos, or of the network.")]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="How long a fold may take: 30m, 11h, 1h30m, 90s.")]
HoursOption = Annotated[float | None, typer.Option("--hours", min=0, help="Stop before these are over, with status 3.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier command wrote.")]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `1280x1918`."""
    if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)):
        raise InputError(f"--size {text}: give HEIGHTxWIDTH, such as 1280x1918")
    return int(match[1]), int(match[2])


def parse_duration(text: str) -> float:
    """Seconds, from `30m`, `11h`, `1h30m` or `90s`."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not hours + minutes + seconds:
        raise InputError(f"--budget {text}: give a time such as 30m, 11h, 1h30m or 90s")
    return round(3600 * hours + 60 * minutes + seconds, 3)


def format_duration(seconds: float) -> str:
    """`parse_duration` undone: `1h30m` from 5400."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{number:g}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if number]
    return "".join(parts) or "0s"


def end_of(hours: float | None) -> float:
    """When so many hours from now are over, as `time.monotonic()` counts; never for None."""
    return float("inf") if hours is None else time.monotonic() + 3600 * hours


def command_line() -> str:
    """The command that runs, such as `make_submission.py unet_lite0`."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def run(script: Callable | typer.Typer) -> None:
    """Runs a script, given as its `main` or as an app of subcommands.

    An error that the user can mend ends in one line on stderr and exit status 2; any other keeps its traceback.
    """
    set_up()
    app = script if isinstance(script, typer.Typer) else typer.Typer(add_completion=False)
    app.pretty_exceptions_enable = False
    if app is not script:
        app.command(help=script.__globals__["__doc__"])(script)
    try:
        return app()
    except (InputError, OSError) as error:  # a loader process wraps it in a traceback; an OSError is a full disk, say
        message = str(error).rpartition("InputError: ")[2].strip()
    except RuntimeError as error:
        if (message := scarcity(error)) is None:
            raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def set_up() -> None:
    """Makes settings that other libraries read when they are imported, unless the user has made them.

    glibc's allocator is to keep freed memory; from the system it would come back page by page. A training step on a CPU
    allocates and frees gigabytes: unet_lite0 at 256x384 took 0.25 s a photo instead of 0.31 (0.37 with PyTorch's huge
    pages; means of three, two cores of a virtual AMD EPYC without bf16).
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no call to PyPI
    # On a CPU a thread of PyTorch that waits for the others spins 300,000 times before it sleeps, on a core that the
    # threads that load photos need: prediction had 0.887 of the bare networks' rate, with this 0.898 and 0.916.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX of glibc's <malloc.h>
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD
