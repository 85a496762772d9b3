"""What all scripts share: where the repository is, the options that several of them take, how they fail."""

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

INPUT, RUNS, FOLDS = REPOSITORY / "input", REPOSITORY / "runs", REPOSITORY / "folds" / "folds.csv"


def run(main: Callable) -> None:
    """Runs a script's `main` with its arguments; a user's mistake ends in its own line(s) and exit status 2."""
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
