"""Packs `src/` and a kernel into one script that Kaggle runs: `python kernels/build.py train unet_lite0 --owner you`.

`kernels/build/<slug>/` gets the script (or notebook) and its kernel-metadata.json. launch.py does this by itself; by
hand: `kaggle kernels push -p kernels/build/<slug>`.
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from packing import (
    BUILD,
    FOLDS,
    LIMIT,
    SHAPES,
    BuildError,
    Kernel,
    build,
    parse_folds,
    slugify,
    submit_settings,
    train_settings,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

OwnerOption = Annotated[str, typer.Option("--owner", help="Your Kaggle user name.")]
TitleOption = Annotated[str | None, typer.Option("--title", help="Title on Kaggle, 5 to 50 characters.")]
MachineOption = Annotated[str, typer.Option("--machine", help=f"One of {', '.join(SHAPES)}; t4 is two T4.")]
SourceOption = Annotated[list[str], typer.Option("--source", help="owner/slug of a kernel whose output is attached.")]
DatasetOption = Annotated[list[str], typer.Option("--dataset", help="owner/slug of a dataset to attach.")]
HoursOption = Annotated[float, typer.Option("--hours", min=0.001, max=12, help="Stop before so many.")]
InternetOption = Annotated[bool, typer.Option("--internet", help="Encoder weights from timm's hub.")]
NotebookOption = Annotated[bool, typer.Option("--notebook", help="A notebook to read instead of a script.")]
CarsOption = Annotated[Path | None, typer.Option("--cars", help="Use only the cars that this file lists.")]
FoldsFileOption = Annotated[Path, typer.Option("--folds-file", help="Table of folds: car,pixels,fold.")]
DirtyOption = Annotated[bool, typer.Option("--dirty", help="Pack uncommitted changes; the kernel says so.")]
TtaOption = Annotated[str, typer.Option("--tta", help="Views beside the photo itself, as in make_submission.py.")]
FolderOption = Annotated[Path, typer.Option("--output", help="Folder of the kernels' folders.")]


@app.command("train")
def build_train(
    experiment: str,
    owner: OwnerOption,
    folds: Annotated[str, typer.Option(help="0-4, 0,2 or 3; two at a time is what a session's two T4 do.")] = "0,1",
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="As of src/train.py.")] = (),
    together: Annotated[bool, typer.Option("--together", help="Each fold on all GPUs, one after the other.")] = False,
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, title: TitleOption = None, machine: MachineOption = "t4",
    source: SourceOption = (), dataset: DatasetOption = (), internet: InternetOption = False,
    notebook: NotebookOption = False, cars: CarsOption = None, folds_file: FoldsFileOption = FOLDS,
    dirty: DirtyOption = False, output: FolderOption = BUILD,
) -> None:  # fmt: skip
    """Folds of an experiment."""
    settings = train_settings(experiment, parse_folds(folds), list(overrides), tta, hours, together)
    title = title or f"carvana {slugify(experiment)} folds {folds.replace(',', ' ')}"
    sources = tuple(source), tuple(dataset)
    kernel = Kernel("train", title, owner, settings, machine, internet, notebook, *sources, cars, folds_file)
    finish(kernel, output, dirty)


@app.command("submit")
def build_submit(
    experiments: list[str],
    owner: OwnerOption,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts; the merge kernel joins them.")] = "1/1",
    threshold: Annotated[float | None, typer.Option(help="By default that of the out-of-fold tables.")] = None,
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, title: TitleOption = None, machine: MachineOption = "t4",
    source: SourceOption = (), dataset: DatasetOption = (),
    notebook: NotebookOption = False, cars: CarsOption = None, dirty: DirtyOption = False, output: FolderOption = BUILD,
) -> None:  # fmt: skip
    """The test photos, or a shard of them, predicted by trained folds."""
    match = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", shard)
    if not match or int(match[1]) > int(match[2]):
        raise BuildError(f"--shard {shard}: give i/n with i from 1 to n, such as 1/4")
    settings = submit_settings(experiments, (int(match[1]), int(match[2])), tta, threshold, hours)
    title = title or f"carvana {slugify(experiments[0])} shard {match[1]} of {match[2]}"
    kernel = Kernel("submit", title, owner, settings, machine, False, notebook, tuple(source), tuple(dataset), cars)
    finish(kernel, output, dirty)


@app.command("merge")
def build_merge(
    owner: OwnerOption, title: TitleOption = "carvana merge", source: SourceOption = (), dataset: DatasetOption = (),
    notebook: NotebookOption = False, cars: CarsOption = None, dirty: DirtyOption = False, output: FolderOption = BUILD,
) -> None:  # fmt: skip
    """Shards to one submission; needs no GPU."""
    kernel = Kernel("merge", title, owner, {"hours": 1.0}, "cpu", False, notebook, tuple(source), tuple(dataset), cars)
    finish(kernel, output, dirty)


def finish(kernel: Kernel, output: Path, dirty: bool) -> None:
    folder = build(kernel, output, dirty)
    size = (folder / kernel.code_file).stat().st_size
    print(f"{folder}: {kernel.id}, {size:,} of {LIMIT:,} bytes")


def run(app: typer.Typer) -> None:
    """Runs a command line; a BuildError ends in a line and exit status 2."""
    try:
        app()
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(app)
