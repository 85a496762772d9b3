"""Dice on cars never seen against minutes of training, ours and others': `python benchmarks/time_to_dice.py`.

Same cars, same held-out cars, same minutes; Dice per image at photo size by the same code for all. Each of `--minutes`
is a training of its own, planned for that time.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import library  # noqa: F401
import torch
import typer
from contestants import CONTESTANTS, parse_contestants
from machine import describe_machine, headline, machine_settings
from race import Race, score
from results import reuse

from carvana import command
from carvana.config import Config
from carvana.data.folds import read_folds
from carvana.data.images import open_train
from carvana.device import Device, local_device
from carvana.errors import InputError
from carvana.evaluation.metrics import BEYOND, estimate_mean
from carvana.experiment import load_experiment
from carvana.log import replacing, say
from carvana.prediction.tta import parse_views
from carvana.training.split import Fold, split_fold

COLUMNS = {"error": "1 - Dice"} | {column: f"> {pixels} px" for column, pixels in BEYOND.items()}


def main(
    experiment: Annotated[str, typer.Option(help="Ours: a name in src/experiments, or a path.")] = "unet_lite0",
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    folds_file: command.FoldsOption = command.FOLDS,
    fold: Annotated[int, typer.Option(help="The fold whose cars are held out.")] = 0,
    minutes: Annotated[str, typer.Option(help="Of training, for each contestant; several as 15,30,60.")] = "30",
    contestants: Annotated[str, typer.Option(help=f"all, or some of {','.join(CONTESTANTS)}.")] = "all",
    output: Annotated[Path, typer.Option(help="Folder for results and plot.")] = command.RUNS / "time_to_dice",
    tta: command.TtaOption = "none",
    overrides: command.OverridesOption = (),
    smp_size: Annotated[str, typer.Option(help="smp's network size.")] = "512x768",
    smp_lr: Annotated[float, typer.Option(help="smp's first learning rate; a cosine follows.")] = 1e-3,
    overwrite: command.OverwriteOption = False,
) -> None:
    names, views = parse_contestants(contestants), parse_views(tta)
    config = load_experiment(experiment, command.EXPERIMENTS, list(overrides))
    photos = open_train(input_root, cars, config.data.photos)
    split = split_fold(photos, read_folds(folds_file), fold, output, config.name)
    device = local_device(config.train.precision)
    task = describe_task(split, views, config, device)
    for budget in parse_minutes(minutes):
        race = Race(split, budget, config, device, command.parse_size(smp_size), smp_lr)
        for name in names:
            settings = task | {"minutes": budget, "own": CONTESTANTS[name].settings(race)}
            path = output / f"{name}-{budget:g}m.json"
            reuse(path, settings, overwrite, partial(compete, name, race, views))
    results = comparable(output, task, race)
    report(results)
    plot(results, output / "time_to_dice.png")
    print(f"written: {output}")


def parse_minutes(text: str) -> list[float]:
    """`30`, or several joined by commas; sorted. Raises InputError for anything but positive numbers."""
    try:
        minutes = sorted({float(number) for number in text.split(",")})
    except ValueError:
        minutes = [0.0]
    if not 0 < minutes[0] <= minutes[-1] < 1e6:
        raise InputError(f"--minutes {text}: give a number, or several as 15,30,60")
    return minutes


def describe_task(fold: Fold, views: list[str], config: Config, device: Device) -> dict:
    """What results must agree in to be compared."""
    return {
        "fold": fold.number,
        "folds_digest": fold.digest,
        "train_cars": fold.train.cars,
        "val_cars": fold.val.cars,
        "views": views,
        "photos": config.data.photos,
        "num_workers": config.data.num_workers,
        **machine_settings(device),
    }


def comparable(output: Path, task: dict, race: Race) -> dict[tuple[str, float], dict]:
    """The results of this task and settings in the folder, also of earlier commands, by contestant and minutes."""
    results = {}
    for name, contestant in CONTESTANTS.items():
        asked = json.loads(json.dumps(task | {"own": contestant.settings(race)}))
        for path in output.glob(f"{name}-*m.json"):
            result = json.loads(path.read_text())
            if asked.items() <= result["settings"].items():
                results[name, result["settings"]["minutes"]] = result
    return dict(sorted(results.items(), key=lambda item: (item[0][1], list(CONTESTANTS).index(item[0][0]))))


def compete(name: str, race: Race, views: list[str]) -> dict:
    """Trains a contestant and scores it on all held-out photos."""
    say(f"{name}: {race.minutes:g} minutes on {len(race.fold.train.image_ids)} photos")
    torch.manual_seed(0)
    trained = CONTESTANTS[name].train(race)
    scores = score(trained.model, trained.fit, race)
    errors = scores.assign(error=1 - scores["dice"])
    result = {
        **{column: estimate_mean(errors[column], errors["car"]) for column in COLUMNS},
        "worst": float(scores["dice"].min()),
        "minutes": trained.minutes,
        "photos_per_second": trained.photos / (60 * trained.minutes),
        "photos": trained.photos,
        "size": trained.fit.size,
        "notes": trained.notes,
        "machine": describe_machine(race.device),
    }
    if len(views) > 1:
        with_views = score(trained.model, trained.fit, race, views)
        result["dice_with_views"] = float(with_views["dice"].mean())
    return result


def report(results: dict[tuple[str, float], dict]) -> None:
    """The table, and how large our errors are beside each other one's of the same minutes."""
    first = next(iter(results.values()))
    task = first["settings"]
    print(headline(first["machine"]))
    print(f"{len(task['train_cars'])} cars to train on, {len(task['val_cars'])} held out (fold {task['fold']})")
    views = f"  with {'+'.join(task['views'][1:])}" if len(task["views"]) > 1 else ""
    errors = "".join(f"{title:>10}" for title in COLUMNS.values())
    print(f"{'':14}{'size':>10}{'minutes':>9}{'photos/s':>10}{'Dice':>9}{errors}{'worst':>9}{views}")
    for (name, _), result in results.items():
        size = "x".join(map(str, result["size"]))
        errors = "".join(f"{result[column]['mean']:>10.5f}" for column in COLUMNS)
        mirrored = f"{result['dice_with_views']:>{len(views)}.5f}" if views else ""
        print(
            f"{name:14}{size:>10}{result['minutes']:>9.2f}{result['photos_per_second']:>10.2f}"
            f"{1 - result['error']['mean']:>9.5f}{errors}{result['worst']:>9.5f}{mirrored}"
        )
    for (name, minutes), result in results.items():
        if name == "ours":
            print(f"ours, {minutes:g} minutes: {' + '.join(map(str, result['notes']['epochs']))} epochs")
        elif ours := results.get(("ours", minutes)):
            shares = (
                f"{title} is {100 * ours[column]['mean'] / max(result[column]['mean'], 1e-9):.1f} %"
                for column, title in COLUMNS.items()
            )
            print(f"ours, {minutes:g} minutes, beside {name}: {', '.join(shares)} of its own")
    for (name, minutes), result in results.items():
        intervals = ("{} {:.5f} to {:.5f}".format(title, *result[c]["interval"]) for c, title in COLUMNS.items())
        print(f"{name}, {minutes:g} minutes, 95 % of cars drawn anew: {', '.join(intervals)}")


def plot(results: dict[tuple[str, float], dict], path: Path) -> None:
    """1 - Dice and the error beyond a pixel against minutes of training, a point a training, with its interval."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for axes, column in zip(panels, list(COLUMNS)[:2], strict=True):
        for name in CONTESTANTS:
            points = [(result["minutes"], result[column]) for (owner, _), result in results.items() if owner == name]
            if points:
                minutes, errors = zip(*points, strict=True)
                means = [error["mean"] for error in errors]
                low, high = zip(*(error["interval"] for error in errors), strict=True)
                bars = [
                    [m - a for m, a in zip(means, low, strict=True)],
                    [b - m for m, b in zip(means, high, strict=True)],
                ]
                axes.errorbar(minutes, means, bars, marker="o", capsize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([minutes for _, minutes in results])
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
        axes.set_xlabel("minutes of training")
        axes.set_ylabel(f"{COLUMNS[column]}, mean of photos of cars never seen")
        axes.grid(alpha=0.3, which="both")
    panels[0].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    command.run(main)
