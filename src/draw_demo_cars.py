"""Draws an imitation of the competition's data: invented cars on a turntable, with exact masks.

Nothing is copied from Kaggle's photos. The same seed draws the same bytes; what is there already is not drawn again.
"""

import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from PIL import Image

from carvana.command import RUNS, parse_size, run
from carvana.demo.car import PAINTS, STYLES, Car
from carvana.demo.studio import Camera, draw_photo, draw_studio
from carvana.errors import InputError
from carvana.log import progress, replacing, say

VERSION = 1  # of the drawing: raise it with any change of a pixel, else an old demo passes for a new one


def draw_car(output: Path, demo: dict, number: int) -> None:
    """Writes the photos and masks of one car that are not there yet."""
    cv2.setNumThreads(1)  # the processes share out the cores
    (height, width), rng = demo["size"], np.random.default_rng([demo["seed"], number])
    car = Car(
        STYLES[number % len(STYLES)], tuple(PAINTS.values())[number % len(PAINTS)], rng, np.clip(width / 960, 0.3, 1)
    )
    position, target = rng.uniform(-0.2, 0.2, (2, 3)) * ((1,), (0.3,)) + ((8.2, 0, 1.75), (0, 0, 0.95))
    focal = 1.355 * min(width, 1.5 * height) * rng.uniform(0.96, 1.04)
    camera = Camera((height, width), position, target, focal)
    light, gain, start = rng.uniform(0.3, 0.5, 3) * (1, 1, 2), rng.uniform(0.95, 1.05), rng.uniform(-0.05, 0.05)
    room = draw_studio(camera, rng)
    noise = rng.normal(0, rng.uniform(1.5, 2.5), (height + 64, width + 64, 3)).astype(np.float32)
    for step, (photo_path, mask_path) in enumerate(paths(output, demo, number)):
        top, left = rng.integers(0, 64, 2)
        if photo_path.exists() and mask_path.exists():
            continue
        photo, mask = draw_photo(car, camera, room, start + step * np.pi / 8, light / np.linalg.norm(light))
        photo = np.clip(photo * gain + noise[top : top + height, left : left + width], 0, 255).astype(np.uint8)
        done, jpeg = cv2.imencode(".jpg", photo[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 93))
        if not done:
            raise InputError(f"{photo_path}: OpenCV could not encode the photo; give another --size")
        picture = Image.fromarray(mask)
        picture.putpalette((0, 0, 0, 255, 255, 255))
        with replacing(mask_path) as temporary:
            picture.save(temporary, format="GIF")
        with replacing(photo_path) as temporary:
            temporary.write_bytes(jpeg.tobytes())


def car_ids(demo: dict) -> list[str]:
    rng = np.random.default_rng(demo["seed"])
    return [rng.bytes(6).hex() for _ in range(demo["train_cars"] + demo["test_cars"])]


def paths(output: Path, demo: dict, number: int) -> list[tuple[Path, Path]]:
    """The photo and the mask of each of a car's angles."""
    part, car = "train" if number < demo["train_cars"] else "test", car_ids(demo)[number]
    images = [f"{car}_{angle:02d}" for angle in range(1, 17)]
    return [(output / part / f"{image}.jpg", output / f"{part}_masks" / f"{image}_mask.gif") for image in images]


def prepare(output: Path, demo: dict) -> list[int]:
    """Removes an earlier drawing unless it was the same, notes what is drawn, returns the cars that lack a file."""
    note, cars = output / "drawn.json", range(demo["train_cars"] + demo["test_cars"])
    try:
        earlier = json.loads(note.read_text()) if note.exists() else None
        old = [paths(output, earlier, number) for number in range(len(car_ids(earlier)))] if note.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{note}: not this script's note; give another --output") from error
    if earlier is None and any((output / name).exists() for name in ("train", "test", "metadata.csv")):
        raise InputError(f"{output}: holds files that this script did not draw; give another --output")
    if earlier != demo:
        for path in (path for car in old for pair in car for path in pair):
            path.unlink(missing_ok=True)
        with replacing(note) as temporary:
            temporary.write_text(json.dumps(demo) + "\n")
    return [n for n in cars if not all(a.exists() and b.exists() for a, b in paths(output, demo, n))]


def write_tables(output: Path, demo: dict) -> None:
    rows, rng, cars = [], np.random.default_rng(demo["seed"]), car_ids(demo)
    for number, car in enumerate(cars):
        make, style = ("Alder", "Birch", "Cedar", "Dogwood", "Elm")[number % 5], STYLES[number % len(STYLES)].name
        paint = tuple(PAINTS)[number % len(PAINTS)]
        rows.append(f"{car},{rng.integers(2005, 2017)},{make},{make[0]}{number + 1},{style},{paint}\n")
    images = [f"{car}_{angle:02d}.jpg,1 1\n" for car in cars[demo["train_cars"] :] for angle in range(1, 17)]
    with replacing(output / "metadata.csv") as temporary:
        temporary.write_text("id,year,make,model,trim1,trim2\n" + "".join(sorted(rows)))
    with replacing(output / "sample_submission.csv") as temporary:
        temporary.write_text("img,rle_mask\n" + "".join(sorted(images)))


def main(
    output: Annotated[Path, typer.Option(help="Folder to draw into.")] = RUNS / "demo" / "input",
    train_cars: Annotated[int, typer.Option(help="Cars with 16 photos and masks each.")] = 10,
    test_cars: Annotated[int, typer.Option(help="Cars whose masks go to test_masks/, for scoring only.")] = 2,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the photos.")] = "1280x1918",
    seed: Annotated[int, typer.Option(help="The same seed draws the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes, each draws a car at a time.")] = os.cpu_count() or 1,
) -> None:
    """Draws invented cars in the competition's format, so that everything runs without a Kaggle account."""
    sides = list(parse_size(size))
    if not all(64 <= side <= 4096 for side in sides):
        raise InputError(f"--size {size}: give HEIGHTxWIDTH, each from 64 to 4096, for example 1280x1918")
    if not (1 <= train_cars <= 1000 and 0 <= test_cars <= 1000 and seed >= 0 and workers >= 1):
        raise InputError("give --train-cars 1 to 1000, --test-cars 0 to 1000, --seed from 0, --workers from 1")
    demo = {"version": VERSION, "seed": seed, "size": sides, "train_cars": train_cars, "test_cars": test_cars}
    quiet = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, which ends the others
    try:
        missing = prepare(output, demo)
        write_tables(output, demo)
        with multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(missing))), *quiet) as pool:
            drawn = pool.imap_unordered(partial(draw_car, output, demo), missing)
            for _ in progress(drawn, "drawing", total=len(missing), unit="car"):
                pass
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    say(f"{output}: {16 * train_cars} photos to train on, {16 * test_cars} to test on")


if __name__ == "__main__":
    run(main)
