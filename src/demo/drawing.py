"""Imitates the competition's data: invented cars on a turntable, in files named as Kaggle names them, with exact masks.

Nothing is copied from Kaggle's photos. The same seed draws the same bytes; what is drawn already is not drawn again.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from carvana.errors import InputError
from carvana.log import progress, replacing, say, write_records
from demo.car import PAINTS, STYLES, Car
from demo.studio import Camera, draw_photo, draw_studio

VERSION = 1  # of the drawing: raise it with any change of a pixel, else an old demo passes for a new one


def draw_demo(output: Path, train_cars: int, test_cars: int, size: tuple[int, int], seed: int, workers: int) -> None:
    """Draws photos of `size` (height, width) in `workers` processes. Raises InputError before it writes anything."""
    if not all(64 <= side <= 4096 for side in size):
        raise InputError(f"--size {size[0]}x{size[1]}: give HEIGHTxWIDTH, each from 64 to 4096, for example 1280x1918")
    demo = {"version": VERSION, "seed": seed, "size": list(size), "train_cars": train_cars, "test_cars": test_cars}
    missing = prepare(output, demo)
    rows = [f"{car}_{angle:02d}.jpg,1 1\n" for car in car_ids(demo)[train_cars:] for angle in range(1, 17)]
    with replacing(output / "sample_submission.csv") as temporary:
        temporary.write_text("img,rle_mask\n" + "".join(sorted(rows)))
    draw_cars(output, demo, missing, min(workers, len(missing)))
    say(f"{output}: {16 * train_cars} photos to train on, {16 * test_cars} to test on")


def draw_cars(output: Path, demo: dict, missing: list[int], workers: int) -> None:
    """Draws cars in this process or in several. Raises InputError if one of these is killed."""
    draw = partial(draw_car, output, demo)
    if workers <= 1:
        return _draw_all(map(draw, missing), len(missing))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            _draw_all(pool.map(draw, missing), len(missing))
        except BrokenProcessPool:
            message = "a process that draws was killed, as happens when the memory is full; give fewer --workers"
            raise InputError(f"{output}: {message}") from None


def _draw_all(drawn: Iterable[None], cars: int) -> None:
    list(progress(drawn, "drawing", total=cars, unit="car"))


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # the processes share out the cores


def _end_with_parent() -> None:  # carvana.device has the same, but would bring PyTorch into each process
    multiprocessing.parent_process().join()
    os._exit(1)


def draw_car(output: Path, demo: dict, number: int) -> None:
    """Writes the photos and masks of one car that are not drawn yet."""
    (height, width), rng = demo["size"], np.random.default_rng([demo["seed"], number])
    paint, detail = tuple(PAINTS.values())[number % len(PAINTS)], np.clip(width / 960, 0.3, 1)
    car = Car(STYLES[number % len(STYLES)], paint, rng, detail)
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
        encoded, jpeg = cv2.imencode(".jpg", photo[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 93))
        if not encoded:
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
    """Notes what is drawn, returns the cars that lack a file. Raises InputError if the folder holds anything else."""
    note = output / "drawn.json"
    earlier = note.read_text() if note.exists() else None
    if earlier != json.dumps(demo) + "\n" and any(output.glob("*")):
        raise InputError(f"{output}: holds other photos than these; remove them, or give another --output")
    write_records(note, [demo])
    cars = range(demo["train_cars"] + demo["test_cars"])
    return [n for n in cars if not all(a.exists() and b.exists() for a, b in paths(output, demo, n))]
