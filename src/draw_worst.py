"""Draws the worst out-of-fold photos, with what is wrong in them: `python src/draw_worst.py unet_lite0`.

Red is predicted as car and is none, blue is car and was missed; beside each photo, its worst place enlarged.
"""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from carvana.command import INPUT, RUNS, CarsOption, InputOption, RunsOption, run
from carvana.errors import InputError
from carvana.images import open_train
from carvana.oof import read_oof
from carvana.pictures import add_caption, densest, mark_errors, write_picture
from carvana.rle import rle_decode

TILE = 480  # pixels; a photo is shrunk to this width, its worst place is a square of this height shown as it is


def main(
    experiment: Annotated[str, typer.Argument(help="Name of an evaluated experiment, as under runs/.")],
    output: Annotated[Path | None, typer.Option(help="The picture; runs/<experiment>/worst.jpg by default.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of photos.")] = 12,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
) -> None:
    folder, photos = runs / experiment, open_train(input_root, cars)
    _, found = read_oof(folder)
    there = found.table[found.table["image_id"].isin(photos.image_ids)]
    if there.empty:
        raise InputError(f"{folder / 'oof.csv'}: none of its photos is in {input_root}")
    tiles = []
    for row in there.nsmallest(count, "dice").itertuples():
        image, mask = photos.image(row.image_id), photos.mask(row.image_id)
        predicted = rle_decode(found.masks[row.Index], mask.shape)
        tiles.append(draw_tile(image, predicted, mask, f"{row.image_id}  fold {row.fold}  Dice {row.dice:.4f}"))
    picture = output or folder / "worst.jpg"
    write_picture(picture, np.concatenate(tiles))
    print(f"{picture}: the {len(tiles)} worst of {len(there)} photos")


def draw_tile(image: np.ndarray, prediction: np.ndarray, mask: np.ndarray, caption: str) -> np.ndarray:
    """The photo with its errors and, beside it, their densest place, above the caption: uint8."""
    marked = mark_errors(image, prediction, mask)
    height = round(image.shape[0] * TILE / image.shape[1])
    small = cv2.resize(marked, (TILE, height), interpolation=cv2.INTER_AREA)
    side = min(height, *image.shape[:2])
    top, left = densest(prediction != mask, side)
    tile = np.zeros((height, TILE + 2 * height, 3), np.uint8)
    tile[:, :TILE] = small
    for place, picture in enumerate((image, marked)):
        start = TILE + place * height
        tile[:side, start : start + side] = picture[top : top + side, left : left + side]
    return add_caption(tile, caption)


if __name__ == "__main__":
    run(main)
