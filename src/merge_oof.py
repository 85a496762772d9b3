"""Joins out-of-fold results of folds that were evaluated apart, on several machines or in several Kaggle sessions.

`python src/merge_oof.py session-1/runs/unet_lite0 session-2/runs/unet_lite0 --output runs/unet_lite0`
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana.command import run
from carvana.oof import merge_oof


def main(
    parts: Annotated[list[Path], typer.Argument(help="Folders of an experiment, each evaluated there.")],
    output: Annotated[Path, typer.Option(help="The experiment's folder, where the joined ones are written.")],
) -> None:
    oof = merge_oof(parts, output)
    print(f"{output / 'oof.json'}: {oof['photos']} photos of {oof['cars']} cars, folds {', '.join(oof['folds'])}")
    print(f"  out-of-fold Dice {oof['dice']:.5f}, best threshold {oof['threshold']:.2f}")


if __name__ == "__main__":
    run(main)
