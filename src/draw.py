"""Draws pictures to look at, and cars to try everything on: `python src/draw.py overlays submissions/unet.csv.gz`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from carvana import command

app = typer.Typer(help=__doc__, add_completion=False)
CountOption = Annotated[int, typer.Option("--count", min=1, help="Number of photos.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="The picture, or a folder for it.")]


@app.command()
def overlays(
    file: command.FileArgument, output: OutputOption = Path("overlays.jpg"), count: CountOption = 20,
    input_root: command.InputOption = command.INPUT, cars: command.CarsOption = None,
) -> None:  # fmt: skip
    """Draws a submission's masks over their photos: look at it before uploading."""
    from carvana.data.images import open_test
    from carvana.pages.sheets import draw_overlays, write_sheet

    print(write_sheet(draw_overlays(file, open_test(input_root, cars_file=cars), count), output, "overlays.jpg"))


@app.command()
def worst(
    experiment: Annotated[str, typer.Argument(help="Name of an evaluated experiment, as under runs/.")],
    output: OutputOption = None, count: CountOption = 12, input_root: command.InputOption = command.INPUT,
    runs: command.RunsOption = command.RUNS, cars: command.CarsOption = None,
) -> None:  # fmt: skip
    """Draws the worst out-of-fold photos into runs/EXPERIMENT/worst.jpg, with the worst place of each enlarged.

    Red is no car but predicted as car, blue is car that was missed.
    """
    from carvana.data.images import open_train
    from carvana.pages.sheets import draw_worst, write_sheet

    sheet = draw_worst(runs / experiment, open_train(input_root, cars), count)
    print(write_sheet(sheet, output or runs / experiment, "worst.jpg"))


@app.command()
def augmentations(
    augmentation: Annotated[str | None, typer.Option(help="One set by name; by default all.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each photo, a column each.")] = 6,
    output: OutputOption = Path("augmentations.jpg"), size: command.SizeOption = "512x768", count: CountOption = 3,
    input_root: command.InputOption = command.INPUT, cars: command.CarsOption = None,
) -> None:  # fmt: skip
    """Draws what augmentations make of photos, with the masks' contours: look at it before training with them."""
    from carvana.data.augmentations import AUGMENTATIONS
    from carvana.data.images import open_train
    from carvana.pages.sheets import draw_augmentations, write_sheet

    names, photos = [augmentation] if augmentation else list(AUGMENTATIONS), open_train(input_root, cars)
    sheet = draw_augmentations(photos, names, command.parse_size(size), count, draws)
    print(write_sheet(sheet, output, "augmentations.jpg"))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to draw into.")] = command.RUNS / "demo" / "input",
    train_cars: Annotated[int, typer.Option(min=1, max=1000, help="Cars with 16 photos and masks each.")] = 10,
    test_cars: Annotated[int, typer.Option(min=0, max=1000, help="Cars with masks in test_masks/, for scores.")] = 2,
    size: command.SizeOption = "1280x1918",
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each draws a car at a time.")] = os.cpu_count() or 1,
) -> None:
    """Draws invented cars in the competition's format, so that everything runs without a Kaggle account."""
    from demo.drawing import draw_demo

    draw_demo(output, train_cars, test_cars, command.parse_size(size), seed, workers)


if __name__ == "__main__":
    command.run(app)
