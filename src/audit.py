"""Looks at the training data before training: `python src/audit.py`. Exit status 1 if something breaks training.

Writes runs/audit/audit.csv, a row a photo, and runs/audit/audit.html, with pictures of what is wrong or odd.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    input_root: command.InputOption = command.INPUT, cars: command.CarsOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the page.")] = command.RUNS / "audit",
) -> None:  # fmt: skip
    from carvana.data.images import open_train
    from carvana.errors import few
    from carvana.pages.audit import audit_photos, write_audit
    from carvana.pages.findings import KINDS

    photos = open_train(input_root, cars)
    audit = audit_photos(photos)
    page = write_audit(output, input_root, photos, audit)
    for kind, findings in audit.findings.items():
        names = few(list(dict.fromkeys(finding.name for finding in findings)))
        print(f"{'fault' if KINDS[kind].breaks else 'warning'}: {KINDS[kind].heading}: {len(findings)}: {names}")
    faults, warnings = audit.count(breaks=True), audit.count(breaks=False)
    print(f"{page}: {len(photos.image_ids)} photos of {len(photos.cars)} cars, {faults} faults, {warnings} warnings")
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    command.run(main)
