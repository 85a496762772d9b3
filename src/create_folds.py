"""Deals the training cars, never single photos, to folds by the mean area of their masks: `src/create_folds.py`."""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    num_folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    output: Annotated[Path, typer.Option(help="Table to write: car,pixels,fold.")] = command.FOLDS,
    input_root: command.InputOption = command.INPUT, cars: command.CarsOption = None,
    overwrite: command.OverwriteOption = False,
) -> None:  # fmt: skip
    from carvana.data.folds import areas_of_masks, deal_folds, write_once
    from carvana.data.images import open_train

    folds = deal_folds(areas_of_masks(open_train(input_root, cars)), num_folds)
    write_once(folds, output, overwrite)
    areas = folds.groupby("fold")["pixels"].agg(cars="size", mean_pixels="mean")
    print(areas.round().astype(int).to_string())


if __name__ == "__main__":
    command.run(main)
