"""Our run-length encoder against those that everybody copies: `python benchmarks/rle.py`.

On real masks of 1918 x 1280. Each mask goes through all encoders in turn, so that a slower machine slows all alike.
"""

import statistics
import time
from importlib.util import find_spec
from typing import Annotated

import library  # noqa: F401
import numpy as np
import typer
from machine import processor

from carvana import command
from carvana.data.images import open_train
from carvana.data.rle import rle_encode

REPEATS = 5  # of each mask; the fastest counts
WANTED = 2.5  # times as fast as `concatenate`


def concatenate(mask: np.ndarray) -> str:
    """The kernel that most of Kaggle's notebooks hold: pad, compare neighbours, join."""
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def pycocotools(mask: np.ndarray) -> str:
    """COCO's encoder in C. It goes column by column, so that it sees the transposed mask; its text is COCO's own."""
    from pycocotools import mask as coco

    return coco.encode(mask.view(np.uint8).T)["counts"].decode()


def main(
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    count: Annotated[int, typer.Option(min=1, help="Masks, evenly from those of the cars.")] = 96,
) -> None:
    photos = open_train(input_root, cars)
    image_ids = photos.image_ids[:: max(1, len(photos.image_ids) // count)][:count]
    encoders = [rle_encode, concatenate] + ([pycocotools] if find_spec("pycocotools") else [])
    seconds = {encode.__name__: [] for encode in encoders}
    for image_id in image_ids:
        mask = photos.mask(image_id)
        assert rle_encode(mask) == concatenate(mask), image_id
        for encode in encoders:
            seconds[encode.__name__].append(min(time_once(encode, mask) for _ in range(REPEATS)))
    print(f"{processor()}; {len(image_ids)} masks of {mask.shape[0]}x{mask.shape[1]}, median")
    ours = statistics.median(seconds["rle_encode"])
    for name, each in seconds.items():
        median = statistics.median(each)
        print(f"{name:14}{1000 * median:8.3f} ms{median / ours:8.2f} times ours")
    ratio = statistics.median(seconds["concatenate"]) / ours
    print(f"at least {WANTED} times as fast as concatenate: {'reached' if ratio >= WANTED else 'MISSED'}")
    if pycocotools not in encoders:
        print("pycocotools is left out: pip install -r benchmarks/requirements.txt")


def time_once(encode, mask: np.ndarray) -> float:
    started = time.perf_counter()
    encode(mask)
    return time.perf_counter() - started


if __name__ == "__main__":
    command.run(main)
