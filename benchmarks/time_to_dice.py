"""Dice on cars never seen against minutes of training, ours and others': `python benchmarks/time_to_dice.py`.

Same cars, same held-out cars, same minutes; Dice per image at photo size by the same code for all.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import library  # noqa: F401
import torch
import typer
from contestants import CONTESTANTS, parse_contestants
from machine import describe_machine, headline
from race import Race, score
from results import reuse

from carvana import command
from carvana.data.folds import read_folds
from carvana.data.images import open_train
from carvana.device import Device, chosen_precision, process_state
from carvana.evaluation.metrics import BEYOND, estimate_mean
from carvana.experiment import load_experiment
from carvana.log import replacing, say, write_json
from carvana.prediction.tta import parse_views
from carvana.training.state import split_fold

TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.992, 0.994, 0.995, 0.996, 0.997, 0.998)


def main(
    experiment: Annotated[str, typer.Option(help="Ours: a name in src/experiments, or a path.")] = "unet_lite0",
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    folds_file: command.FoldsOption = command.FOLDS,
    fold: Annotated[int, typer.Option(help="The fold whose cars are held out.")] = 0,
    minutes: Annotated[float, typer.Option(min=0.001, help="Of training, for each contestant.")] = 30,
    contestants: Annotated[str, typer.Option(help=f"all, or some of {','.join(CONTESTANTS)}.")] = "all",
    output: Annotated[Path, typer.Option(help="Folder for results and plot.")] = command.REPOSITORY
    / "runs"
    / "time_to_dice",
    tta: command.TtaOption = "none",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of ours, e.g. optim.lr=3e-4.")
    ] = (),
    smp_size: Annotated[str, typer.Option(help="smp's network size.")] = "512x768",
    smp_lr: Annotated[float, typer.Option(help="smp's first learning rate; a cosine follows.")] = 1e-3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what has a result already.")] = False,
) -> None:
    names, views = parse_contestants(contestants), parse_views(tta)
    config = load_experiment(experiment, command.EXPERIMENTS, list(overrides))
    split = split_fold(open_train(input_root, cars), read_folds(folds_file), fold, output, config.name)
    device = Device(process_state().device, chosen_precision(config.train.precision))
    race = Race(split, minutes, config, device, command.parse_size(smp_size), smp_lr)
    results = {}
    for name in names:
        path, settings = output / f"{name}.json", describe_task(name, race, views)
        results[name] = reuse(path, settings, overwrite, partial(compete, name, race, views))
    write_json(output / "results.json", results)
    report(results)
    if find_spec("matplotlib"):
        plot(results, output / "time_to_dice.png")
    else:
        say("no plot: pip install -r benchmarks/requirements.txt")
    print(f"written: {output}")


def describe_task(name: str, race: Race, views: list[str]) -> dict:
    """What a result that is to be reused must agree in."""
    return {
        "minutes": race.minutes,
        "fold": race.fold.number,
        "folds_digest": race.fold.digest,
        "train_cars": race.fold.train.cars,
        "val_cars": race.fold.val.cars,
        "views": views,
        "precision": race.device.precision,
        "own": CONTESTANTS[name].settings(race),
    }


def compete(name: str, race: Race, views: list[str]) -> dict:
    """Trains a contestant and scores it on all held-out photos."""
    say(f"{name}: {race.minutes:g} minutes on {len(race.fold.train.image_ids)} photos")
    torch.manual_seed(0)
    trained = CONTESTANTS[name].train(race)
    image_ids = race.fold.val.image_ids
    scores = score(trained.model, trained.fit, race, image_ids)
    mean = float(scores["dice"].mean())
    result = {
        "dice": mean,
        "worst": float(scores["dice"].min()),
        "errors": {name: estimate_mean(scores[name], scores["car"]) for name in BEYOND},
        "minutes": trained.minutes,
        "photos_per_second": trained.photos / (60 * trained.minutes),
        "photos": trained.photos,
        "size": trained.fit.size,
        "points": [*trained.points, {"minutes": trained.minutes, "dice": mean, "photos": len(scores)}],
        "notes": trained.notes,
        "machine": describe_machine(race.device),
    }
    if len(views) > 1:
        with_views = score(trained.model, trained.fit, race, image_ids, views)
        result["dice_with_views"] = float(with_views["dice"].mean())
    return result


def report(results: dict[str, dict]) -> None:
    """The table, and how large our error is beside each other one."""
    first = next(iter(results.values()))
    task = first["settings"]
    print(f"{headline(first['machine'])}; {task['minutes']:g} minutes of training for each")
    print(f"{len(task['train_cars'])} cars to train on, {len(task['val_cars'])} held out (fold {task['fold']})")
    views = f"  with {'+'.join(task['views'][1:])}" if len(task["views"]) > 1 else ""
    errors = "".join(f"{f'> {pixels} px':>9}" for pixels in BEYOND.values())
    print(f"{'':14}{'size':>10}{'minutes':>9}{'photos/s':>10}{'Dice':>9}{'1 - Dice':>10}{errors}{'worst':>9}{views}")
    for name, result in results.items():
        size = "x".join(map(str, result["size"]))
        errors = "".join(f"{result['errors'][column]['mean']:>9.5f}" for column in BEYOND)
        mirrored = f"{result['dice_with_views']:>{len(views)}.5f}" if views else ""
        print(
            f"{name:14}{size:>10}{result['minutes']:>9.2f}{result['photos_per_second']:>10.2f}"
            f"{result['dice']:>9.5f}{1 - result['dice']:>10.5f}{errors}{result['worst']:>9.5f}{mirrored}"
        )
    if ours := results.get("ours"):
        notes = ours["notes"]
        planned = " + ".join(map(str, notes["epochs_planned"]))
        print(f"ours is {ours['settings']['own']['name']}, {notes['epochs']} epochs of {planned} planned")
        for name in [name for name in results if name != "ours"]:
            share = (1 - ours["dice"]) / (1 - results[name]["dice"])
            print(f"the error (1 - Dice) of ours is {100 * share:.1f} % of that of {name}")
    for name, result in results.items():
        shown = ("{} {:.5f} to {:.5f}".format(column, *error["interval"]) for column, error in result["errors"].items())
        print(f"{name}: 95 % of cars drawn anew: {', '.join(shown)}")


def plot(results: dict[str, dict], path: Path) -> None:
    """Dice against minutes of training, a point an evaluation; the axis is spread towards 1."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, result in results.items():
        axes.plot(*zip(*((p["minutes"], p["dice"]) for p in result["points"]), strict=True), marker="o", label=name)
    axes.set_yscale("logit")
    axes.yaxis.set_major_locator(ticker.FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(lambda dice, _: f"{dice:.5g}")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("Dice per image at photo size, cars never seen")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(results))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    command.run(main)
