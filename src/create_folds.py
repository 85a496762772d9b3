"""Deals the training cars, never single photos, to folds by the mean area of their masks.

python src/create_folds.py                                      # reads all masks in input/
python src/create_folds.py --mask-pixels pixels.csv             # areas counted before: img,pixels
python src/create_folds.py --cars some.txt --output runs/some.csv
"""

from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from carvana import command
from carvana.errors import InputError
from carvana.folds import deal_folds, folds_text, write_folds
from carvana.images import Photos, car_of, open_train, read_cars
from carvana.log import progress, say

NumFolds = Annotated[int, typer.Option(min=2, help="Number of folds.")]
Output = Annotated[Path, typer.Option(help="Table to write: car,pixels,fold.")]
MaskPixels = Annotated[Path | None, typer.Option(help="CSV img,pixels to use instead of reading the masks.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a table with other content.")]


def main(
    input: command.InputOption = command.INPUT,
    num_folds: NumFolds = 5,
    output: Output = command.FOLDS,
    cars: command.CarsOption = None,
    mask_pixels: MaskPixels = None,
    overwrite: Overwrite = False,
) -> None:
    """Deals the training cars, never single photos, to folds by the mean area of their masks."""
    pixels = areas_of_masks(open_train(input, cars)) if mask_pixels is None else read_areas(mask_pixels, cars)
    folds = deal_folds(pixels, num_folds)
    write_once(folds, output, overwrite)
    areas = folds.groupby("fold")["pixels"].agg(cars="size", mean_pixels="mean")
    print(areas.round().astype(int).to_string())


def areas_of_masks(photos: Photos) -> pd.Series:
    """Mean number of car pixels in a car's masks, by car."""
    ids = photos.image_ids
    with ThreadPool(2) as pool:
        counts = pool.imap(lambda image_id: np.count_nonzero(photos.mask(image_id)), ids)
        pixels = pd.Series(list(progress(counts, "masks", len(ids), unit="mask")), index=ids)
    return mean_by_car(pixels)


def read_areas(path: Path, cars: Path | None) -> pd.Series:
    """The same from a table `img,pixels`, of the cars that the file `cars` lists or of all."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a CSV img,pixels") from error
    if list(table.columns) != ["img", "pixels"] or table["img"].duplicated().any():
        raise InputError(f"{path}: must have the columns img,pixels and name each photo once")
    if table["pixels"].dtype.kind != "i" or (table["pixels"] < 0).any():
        raise InputError(f"{path}: pixels must be counts, whole numbers from 0")
    pixels = mean_by_car(table["pixels"].set_axis([str(name).rpartition(".")[0] for name in table["img"]]))
    wanted = pixels.index if cars is None else read_cars(cars)
    if absent := sorted(set(wanted).difference(pixels.index)):
        raise InputError(f"{path}: no photo of {', '.join(absent[:5])}; check {cars}")
    return pixels.loc[wanted]


def mean_by_car(pixels: pd.Series) -> pd.Series:
    """From counts by image id to means by car."""
    return pixels.groupby(pixels.index.map(car_of)).mean()


def write_once(folds: pd.DataFrame, output: Path, overwrite: bool) -> None:
    """Writes the table unless it is there; refuses to replace another, which runs may rely on."""
    if output.exists() and output.read_text() == folds_text(folds):
        return say(f"{output}: unchanged")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: has other content; runs rely on it, so replace it with --overwrite only")
    write_folds(folds, output)
    say(f"{output}: {len(folds)} cars")


if __name__ == "__main__":
    command.run(main)
