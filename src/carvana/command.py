"""What all scripts share: where the repository is, the options that several of them take, how they fail."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from carvana.errors import InputError

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


def run(main: Callable) -> None:
    """Runs a script's `main` with its arguments; a user's mistake ends in its own line(s) and exit status 2."""
    # Tensors in huge pages: a CPU step then faults in a tenth of the pages and takes 10-20 % less time. PyTorch
    # reads this when it first allocates; whoever set it otherwise has the last word.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
