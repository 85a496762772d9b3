"""Draws what augmentations make of photos: one contact sheet to look at before training with them."""

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from carvana.augmentations import AUGMENTATIONS, build_augmentation
from carvana.cache import PhotoCache
from carvana.command import INPUT, CarsOption, InputOption, parse_size, run
from carvana.dataset import TrainSet
from carvana.geometry import Fit
from carvana.images import open_train
from carvana.log import progress
from carvana.pictures import write_picture

COLOR = (255, 0, 160)  # of no car in the data
TILE_WIDTH = 320
TITLE_HEIGHT = 28
GAP = 2
PICTURES = (".jpg", ".jpeg", ".png")

NameOption = Annotated[str | None, typer.Option("--augmentation", help="One set by name; all if not given.")]
OutputOption = Annotated[Path, typer.Option("--output", help="A picture, or a folder for augmentations.jpg.")]
SizeOption = Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH of the network.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Number of photos, a row each.")]
DrawsOption = Annotated[int, typer.Option("--draws", min=1, help="Number of draws of each photo, a column each.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Other seeds, other draws.")]


def main(
    input_root: InputOption = INPUT,
    augmentation: NameOption = None,
    output: OutputOption = Path("augmentations.jpg"),
    size: SizeOption = "512x768",
    count: CountOption = 3,
    draws: DrawsOption = 6,
    cars: CarsOption = None,
    seed: SeedOption = 0,
):
    """Writes a picture with a block for each set: COUNT photos, DRAWS times each, with the mask's contour."""
    picture = output if output.suffix.lower() in PICTURES else output / "augmentations.jpg"
    names = [augmentation] if augmentation else list(AUGMENTATIONS)
    for name in names:
        build_augmentation(name)  # a wrong name is refused before photos are read
    photos = PhotoCache(open_train(input_root, cars), Fit(parse_size(size)), gib=0)
    chosen = np.linspace(0, len(photos) - 1, min(count, len(photos))).round().astype(int)
    blocks = [draw_block(photos, chosen, name, draws, seed) for name in progress(names, "draw", unit="set")]
    write_picture(picture, np.vstack(blocks))
    print(f"{picture}: {len(chosen)} photos, {draws} draws of {', '.join(names)}")


def draw_block(photos: PhotoCache, chosen: np.ndarray, name: str, draws: int, seed: int) -> np.ndarray:
    """The set's name above a row for each photo: what the epochs of a training would see."""
    rows = [
        np.hstack([draw_tile(*TrainSet(photos, name, seed, epoch)[index][:2]) for epoch in range(draws)])
        for index in chosen
    ]
    title = np.zeros((TITLE_HEIGHT, rows[0].shape[1], 3), np.uint8)
    white, thin = (255, 255, 255), 1
    cv2.putText(title, name, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, white, thin, cv2.LINE_AA)
    return np.vstack([title, *rows])


def draw_tile(image, mask) -> np.ndarray:
    """Image (3, h, w) with the contour of mask (1, h, w), TILE_WIDTH wide."""
    height, width = mask.shape[1:]
    size = TILE_WIDTH, max(1, round(height * TILE_WIDTH / width))
    tile = cv2.resize(image.permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_AREA)
    coverage = cv2.resize(mask[0].numpy(), size, interpolation=cv2.INTER_AREA)
    contours, _ = cv2.findContours((coverage > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    tile = cv2.drawContours(np.ascontiguousarray(tile), contours, -1, COLOR, 1)
    return cv2.copyMakeBorder(tile, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT)


if __name__ == "__main__":
    run(main)
