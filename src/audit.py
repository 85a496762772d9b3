"""Looks at the training data before training: `python src/audit.py`. Exit status 1 if something breaks training.

Writes runs/audit/audit.csv, a row a photo, and runs/audit/audit.html, with pictures of what was found.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana.audit import audit, write_audit
from carvana.command import INPUT, RUNS, CarsOption, InputOption, run
from carvana.errors import few
from carvana.findings import KINDS
from carvana.images import open_train


def main(
    input_root: InputOption = INPUT,
    cars: CarsOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the page.")] = RUNS / "audit",
) -> None:
    """Looks for what is wrong or odd in the training photos and masks: faults break training, warnings do not."""
    photos = open_train(input_root, cars)
    found = audit(photos)
    page = write_audit(output, input_root, photos, found)
    seen, by_kind = found
    for kind, some in by_kind.items():
        names = few(list(dict.fromkeys(finding.name for finding in some)))
        print(f"{'fault' if KINDS[kind].breaks else 'warning'}: {KINDS[kind].heading}: {len(some)}: {names}")
    faults = sum(len(some) for kind, some in by_kind.items() if KINDS[kind].breaks)
    warnings = sum(map(len, by_kind.values())) - faults
    print(f"{page}: {len(seen)} photos of {len(photos.cars)} cars, {faults} faults, {warnings} warnings")
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
