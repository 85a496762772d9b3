"""Single folds, ensembles and networks of all cars on cars that none of them has learnt from.

`python benchmarks/held_out.py unet_lite0:all:hflip unet_lite0:none student:none --cars CARS`: each is NAME:FOLDS, with
other views NAME:FOLDS:VIEWS, and is compared with the first.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import library  # noqa: F401
import pandas as pd
import typer
from machine import describe_machine, headline, machine_settings
from race import score_photos
from results import reuse

from carvana import command
from carvana.data.images import Photos, open_train
from carvana.data.loader import Loading
from carvana.device import Device, local_device
from carvana.errors import InputError, few
from carvana.evaluation.comparison import compare
from carvana.evaluation.metrics import BEYOND, estimate_mean
from carvana.evaluation.summary import error_line
from carvana.models.checkpoint import Checkpoint, all_seen_cars, photos_of
from carvana.prediction.ensemble import Choice
from carvana.submission.choice import build_predictor, choose
from carvana.training.validation import THRESHOLD


def main(
    entries: Annotated[list[str], typer.Argument(help="NAME:FOLDS or NAME:FOLDS:VIEWS, FOLDS as --fold takes them.")],
    cars: Annotated[Path, typer.Option(help="The cars to predict, one id a line.")],
    input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS,
    backend: command.BackendOption = "torch",
    output: Annotated[Path, typer.Option(help="Folder for results.")] = command.RUNS / "held_out",
    overwrite: command.OverwriteOption = False,
) -> None:
    device, results = local_device(), {}
    for entry in entries:
        choice, networks = open_entry(entry, runs)
        members = [network for folds in networks.values() for network in folds]
        photos = open_train(input_root, cars, photos_of(network.path for network in members))
        refuse_leak(entry, photos.cars, all_seen_cars(network.path for network in members))
        digests = [network.digest for network in members]
        settings = {"networks": digests, "views": choice.views, "cars": photos.cars, "backend": backend}
        settings |= machine_settings(device)
        predict = partial(predict_entry, choice, networks, photos, device, backend)
        results[entry] = reuse(output / f"{entry.replace(':', '-')}.json", settings, overwrite, predict)
    report(results, photos)


def open_entry(entry: str, runs: Path) -> tuple[Choice, dict[str, list[Checkpoint]]]:
    """The networks and views that NAME:FOLDS or NAME:FOLDS:VIEWS names. Raises InputError if it is of another form."""
    name, fold, tta = (*entry.split(":", 2), "", "")[:3]
    if not name or not fold:
        raise InputError(f"{entry}: not NAME:FOLDS, as unet_lite0:all, or NAME:FOLDS:VIEWS, as unet_lite0:0:hflip")
    return choose([name], None, runs, tta or "none", THRESHOLD, fold)


def refuse_leak(entry: str, cars: list[str], seen_cars: list[str]) -> None:
    """Raises InputError if networks have learnt from one of `cars`."""
    if leaking := sorted(set(cars).intersection(seen_cars)):
        raise InputError(f"{entry}: has learnt from {few(leaking)}; give cars that it has not seen with --cars")


def predict_entry(
    choice: Choice, networks: dict[str, list[Checkpoint]], photos: Photos, device: Device, backend: str
) -> dict:
    """A row a photo, and what it took."""
    predictor = build_predictor(choice, networks, device, Loading(), backend)
    score_photos(predictor, photos, photos.image_ids[:8])  # kernels are chosen, memory is there
    start = time.perf_counter()
    table = score_photos(predictor, photos, photos.image_ids)
    return {
        "table": table.to_dict("list"),
        "photos_a_second": len(table) / (time.perf_counter() - start),
        "passes": len(choice.views) * sum(map(len, networks.values())),
        "machine": describe_machine(device),
    }


def report(results: dict[str, dict], photos: Photos) -> None:
    """A line each, with intervals over cars; then what each has less or more than the first."""
    tables = {entry: pd.DataFrame(result["table"]) for entry, result in results.items()}
    (first, reference), *others = tables.items()
    machine = headline(results[first]["machine"])
    print(f"{machine}; {len(reference)} photos of {len(photos.cars)} cars; in brackets 95 % of cars drawn anew")
    for entry, table in tables.items():
        result = results[entry]
        print(f"{entry}: {result['passes']} passes, {result['photos_a_second']:.2f} photos a second")
        print(f"  Dice {table['dice'].mean():.5f}, worst {table['dice'].min():.4f}")
        for column in BEYOND:
            print(error_line(column, **estimate_mean(table[column], table["car"])))
    for entry, table in others:
        comparison = compare(reference, table)
        low, high = comparison.interval
        print(f"{entry} less {first}: Dice {comparison.gain:+.5f} ({low:+.5f} to {high:+.5f})")
        for column, error in comparison.errors.items():
            print(error_line(column, **error, form="+.5f"))


if __name__ == "__main__":
    command.run(main)
