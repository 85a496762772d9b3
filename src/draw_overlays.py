"""Draws a submission's masks over their photos: one contact sheet to look at before uploading."""

from pathlib import Path, PurePath
from typing import Annotated

import cv2
import numpy as np
import typer

from carvana.command import INPUT, CarsOption, InputOption, run
from carvana.errors import InputError
from carvana.images import Photos, open_test
from carvana.log import progress
from carvana.pictures import add_caption, arrange, write_picture
from carvana.rle import rle_decode
from carvana.submission import read_submission

COLOR = np.array([255, 0, 160], np.uint8)  # of no car in the data
TINT = 0.2
BRUSH = np.ones((7, 7), np.uint8)  # a contour 6 px wide on the photo, 1.5 px on the sheet
TILE_WIDTH = 480
PICTURES = (".jpg", ".jpeg", ".png")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The submission: .csv, .csv.gz or .zip.")]
PartOption = Annotated[str, typer.Option("--part", help="The photos' folder or zip: test or train.")]
OutputOption = Annotated[Path, typer.Option("--output", help="A picture, or a folder for overlays.jpg.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Number of photos.")]
ColumnsOption = Annotated[int, typer.Option("--columns", min=1, help="Photos side by side.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Choose photos at random instead of evenly spread.")]


def main(
    file: FileArgument,
    input_root: InputOption = INPUT,
    part: PartOption = "test",
    output: OutputOption = Path("overlays.jpg"),
    count: CountOption = 20,
    columns: ColumnsOption = 4,
    cars: CarsOption = None,
    seed: SeedOption = None,
):
    """Writes a picture of COUNT photos with the contour and a tint of the submitted masks."""
    picture = output if output.suffix.lower() in PICTURES else output / "overlays.jpg"
    photos = open_test(input_root, part, cars)
    names = choose_names(file, photos, count, seed)
    tiles = [
        draw_tile(photos, name, rle)
        for name, rle in progress(read_submission(file), "draw", unit="row")
        if name in names
    ]
    write_picture(picture, arrange(tiles, columns))
    print(f"{picture}: {len(tiles)} photos")


def choose_names(file: Path, photos: Photos, count: int, seed: int | None) -> set[str]:
    """Up to `count` names of rows whose photo is there: evenly spread, or at random by `seed`."""
    known = set(photos.image_ids)
    names = [name for name, _ in read_submission(file) if PurePath(name).stem in known]
    if not names:
        raise InputError(f"{file}: none of its rows has a photo in {photos.photo_part.path}")
    count = min(count, len(names))
    if seed is None:
        chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
    else:
        chosen = np.random.default_rng(seed).choice(len(names), count, replace=False)
    return {names[row] for row in chosen}


def draw_tile(photos: Photos, name: str, rle: str) -> np.ndarray:
    """The marked photo above its name: uint8 (h, TILE_WIDTH, 3)."""
    image = photos.image(PurePath(name).stem)
    try:
        mask = rle_decode(rle, image.shape[:2])
    except ValueError as error:
        raise InputError(f"{name}: {error}; run check_submission.py") from error
    return add_caption(shrink(mark(image, mask)), name)


def mark(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo with the mask tinted and its contour in full colour."""
    contour = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, BRUSH) > 0
    tinted = cv2.addWeighted(image, 1 - TINT, np.broadcast_to(COLOR, image.shape).copy(), TINT, 0)
    marked = np.where(mask[..., None], tinted, image)
    marked[contour] = COLOR
    return marked


def shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(image, (TILE_WIDTH, round(height * TILE_WIDTH / width)), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    run(main)
