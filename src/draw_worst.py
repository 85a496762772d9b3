"""Draws the worst out-of-fold photos, with what is wrong in them: `python src/draw_worst.py unet_lite0`.

Red is predicted as car and is none, blue is car and was missed; beside each photo, its worst place enlarged.
"""

import json
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
import typer

from carvana.command import INPUT, RUNS, BatchOption, CarsOption, InputOption, RunsOption, WorkersOption, run
from carvana.device import Device, local_device
from carvana.errors import InputError
from carvana.images import Photos, open_train
from carvana.inference import Member, fold_model, predict_photos
from carvana.oof import find_checkpoints, load_folds
from carvana.pictures import add_caption, write_picture
from carvana.windows import find_cars

RED, BLUE = np.array([255, 30, 30], np.uint8), np.array([30, 80, 255], np.uint8)
TILE = 480  # pixels; a photo is shrunk to this width, its worst place is a square of this height shown as it is


def main(
    experiment: Annotated[str, typer.Argument(help="Name of an evaluated experiment, as under runs/.")],
    output: Annotated[Path | None, typer.Option(help="The picture; runs/<experiment>/worst.jpg by default.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of photos.")] = 12,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
) -> None:
    folder, photos, device = runs / experiment, open_train(input_root, cars), local_device()
    table, facts = read_oof(folder)
    there = table[table["image_id"].isin(photos.image_ids)]
    if there.empty:
        raise InputError(f"{folder / 'oof.csv'}: none of its photos is in {input_root}")
    worst = there.nsmallest(count, "dice")
    tiles = {}
    for checkpoint in load_folds(find_checkpoints(runs, experiment), facts["folds_digest"]):
        rows = worst[worst["fold"] == checkpoint.fold]
        if len(rows):
            tiles |= draw_fold(checkpoint, photos, rows, facts, device, batch_size, num_workers)
    picture = output or folder / "worst.jpg"
    write_picture(picture, np.concatenate([tiles[image_id] for image_id in worst["image_id"]]))
    print(f"{picture}: the {len(tiles)} worst of {len(there)} photos")


def read_oof(folder: Path) -> tuple[pd.DataFrame, dict]:
    """oof.csv and oof.json. Raises InputError if the experiment was not evaluated."""
    try:
        return pd.read_csv(folder / "oof.csv"), json.loads((folder / "oof.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {error}; run src/evaluate.py {folder.name} first") from None


def draw_fold(
    checkpoint, photos: Photos, rows: pd.DataFrame, facts: dict, device: Device, batch_size: int, num_workers: int
) -> dict[str, np.ndarray]:
    """A tile for each row's photo, by image id."""
    image_ids, dice = rows["image_id"].tolist(), dict(zip(rows["image_id"], rows["dice"], strict=True))
    seen = find_cars(photos, image_ids, [checkpoint], device, batch_size, num_workers)
    member = Member(checkpoint.config.data.geometry, fold_model(checkpoint, facts["tta"], device))
    predictions = predict_photos(
        [member], seen, image_ids, device, masks=True, batch_size=batch_size, num_workers=num_workers,
        description=f"fold {checkpoint.fold}",
    )  # fmt: skip
    return {
        image_id: draw_tile(
            photos.image(image_id), (probs >= facts["threshold"]).cpu().numpy(), mask.cpu().numpy(),
            f"{image_id}  fold {checkpoint.fold}  Dice {dice[image_id]:.4f}",
        )
        for image_id, probs, mask in predictions
    }  # fmt: skip


def draw_tile(image: np.ndarray, prediction: np.ndarray, mask: np.ndarray, caption: str) -> np.ndarray:
    """The photo with its errors and, beside it, their densest place, above the caption: uint8."""
    marked = image.copy()
    marked[prediction & ~mask], marked[mask & ~prediction] = RED, BLUE
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


def densest(wrong: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels with most wrong ones in it."""
    sums = cv2.integral(wrong.astype(np.uint8))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.unravel_index(inside.argmax(), inside.shape)


if __name__ == "__main__":
    run(main)
