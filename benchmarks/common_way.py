"""Our prediction against the way of most published solutions: `python benchmarks/common_way.py unet_lite0`.

Theirs: photos decoded by OpenCV, float32, one photo at a time for each fold and view, each fold's map stored as a PNG
of photo size, all read back, averaged, cut, encoded by concatenate-and-compare, and written by pandas.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import cv2
import library  # noqa: F401
import numpy as np
import pandas as pd
import torch
import typer
from machine import describe_machine, headline
from predict_pipeline import THRESHOLD, load_batch, predict_csv, time_call, time_networks
from rle import concatenate

from carvana import command
from carvana.data.images import Photos, open_train
from carvana.data.loader import Loading
from carvana.data.rle import rle_decode
from carvana.device import local_device
from carvana.evaluation.metrics import dice
from carvana.evaluation.trained import find_checkpoints
from carvana.log import progress
from carvana.models.checkpoint import Checkpoint, load_checkpoint, photos_of
from carvana.prediction.predictor import Predictor, fold_members
from carvana.prediction.tta import parse_views
from carvana.submission.csv import read_submission

TIMES_WANTED, DICE_WANTED = 4, 0.0002


def main(
    experiment: Annotated[str, typer.Argument(help="A trained experiment, as under runs/.")],
    tta: command.TtaOption = "hflip",
    input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    batch_size: command.BatchOption = 4,
    num_workers: command.WorkersOption = 2,
    backend: command.BackendOption = "torch",
    count: Annotated[int, typer.Option(min=1, help="Photos, evenly from those of the cars.")] = 128,
) -> None:
    paths = find_checkpoints(runs, experiment)
    views, device, photos = parse_views(tta), local_device(), open_train(input_root, cars, photos_of(paths))
    if set(views) - {"identity", "hflip"}:
        raise typer.BadParameter("the common way knows no other view than hflip")
    image_ids = photos.image_ids[:: max(1, len(photos.image_ids) // count)][:count]
    print(f"{headline(describe_machine(device))}; {len(paths)} folds x {len(views)} views, {len(image_ids)} photos")
    with TemporaryDirectory() as folder:
        theirs, ours, extracted = Path(folder) / "theirs.csv", Path(folder) / "ours.csv", Path(folder) / "test"
        extract(photos, image_ids, extracted)
        networks = [load_checkpoint(path) for path in paths]
        for network in networks:
            network.model.eval().lay_out(device.device, torch.contiguous_format)
            common_probs(network, torch.zeros(1, 3, *network.config.data.size, dtype=torch.uint8), False)  # warms up
        seconds = time_call(
            lambda: predict_commonly(networks, extracted, Path(folder) / "maps", len(views) > 1, theirs)
        )
        disk = sum(path.stat().st_size for path in (Path(folder) / "maps").rglob("*.png"))
        mix = fold_members([load_checkpoint(path) for path in paths], views, device, backend=backend)
        predictor = Predictor([mix], device, Loading(batch_size, num_workers))
        images = load_batch(mix[0].fit, photos, image_ids[:batch_size], device)
        first = time_networks(mix, images, 1, device)  # a backend compiles there, once for the whole test set
        faster = time_call(lambda: predict_csv(predictor, photos, image_ids, ours))
        theirs_csv, ours_csv = theirs.stat().st_size, ours.stat().st_size
        scores = [score(path, photos) for path in (theirs, ours)]
    print(f"{'':12}{'photos/s':>10}{'kB of maps':>12}{'kB of CSV':>11}  a photo")
    for name, took, *stored in (("common way", seconds, disk, theirs_csv), ("ours", faster, 0, ours_csv)):
        maps, csv = (part / len(image_ids) / 1000 for part in stored)
        print(f"{name:12}{len(image_ids) / took:>10.2f}{maps:>12.1f}{csv:>11.1f}")
    print(f"not counted: the {first:.1f} s of our first batch, for which {backend} prepares itself")
    print(f"{seconds / faster:.2f} times as fast (at least {TIMES_WANTED} wanted)")
    print(f"Dice to the true masks {scores[0]:.5f} and {scores[1]:.5f} (at most {DICE_WANTED} apart wanted)")


def extract(photos: Photos, image_ids: list[str], folder: Path) -> None:
    """Their users unzip the photos first; this time is not counted."""
    folder.mkdir()
    for image_id in image_ids:
        name = photos.name(image_id)
        (folder / name).write_bytes(photos.photo_part.read(name))


def predict_commonly(networks: list[Checkpoint], photos: Path, maps: Path, mirrored: bool, path: Path) -> None:
    for network in networks:
        store_maps(network, photos, maps / str(network.fold), mirrored)
    names = sorted(photo.name for photo in photos.iterdir())
    rows = []
    for name in progress(names, "encode"):
        stored = [cv2.imread(str(fold / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for fold in sorted(maps.iterdir())]
        rows.append((name, concatenate(np.mean(stored, axis=0) / 255 >= THRESHOLD)))
    pd.DataFrame(rows, columns=["img", "rle_mask"]).to_csv(path, index=False)


def store_maps(network: Checkpoint, photos: Path, folder: Path, mirrored: bool) -> None:
    """A fold's mean over the views, 255 times the probability, rounded."""
    folder.mkdir(parents=True)
    height, width = network.config.data.size
    for photo in progress(sorted(photos.iterdir()), f"fold {network.fold}"):
        image = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        probs = common_probs(network, torch.from_numpy(small).permute(2, 0, 1)[None], mirrored)
        whole = cv2.resize(probs[0, 0].cpu().numpy(), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        if not cv2.imwrite(str(folder / f"{photo.name}.png"), np.rint(255 * whole).astype(np.uint8)):
            raise OSError(f"{folder}: the disk is full")


def common_probs(network: Checkpoint, images: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """(1, 1, h, w) of uint8 (1, 3, h, w), in float32 and channels-first."""
    images = images.to(next(network.model.parameters()).device)
    with torch.no_grad():
        probs = network.model(images).sigmoid()
        return (probs + network.model(images.flip(-1)).sigmoid().flip(-1)) / 2 if mirrored else probs


def score(path: Path, photos: Photos) -> float:
    """Mean Dice to the true masks, of photos that the networks may have learnt from: it only serves to compare."""
    scores = []
    for name, rle in read_submission(path):
        mask = photos.mask(Path(name).stem)
        scores.append(dice(torch.from_numpy(rle_decode(rle, mask.shape)), torch.from_numpy(mask)))
    return sum(scores) / len(scores)


if __name__ == "__main__":
    command.run(main)
