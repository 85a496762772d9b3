"""Packs `src/` and a kernel into one script that Kaggle runs: `python kernels/build.py train unet_lite0 --owner you`.

`kernels/build/<slug>/` gets the script (or notebook) and its kernel-metadata.json. launch.py does this by itself; by
hand: `kaggle kernels push -p kernels/build/<slug>`.
"""

from pathlib import Path
from typing import Annotated

import typer
from packing import BUILD, Kernel, build, slugify
from settings import parse_folds, submit_settings, train_settings

from carvana.command import (
    FOLDS,
    BudgetOption,
    CarsOption,
    FoldsOption,
    NetworksOption,
    OverridesOption,
    ThresholdOption,
    TtaOption,
    run,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

OwnerOption = Annotated[str, typer.Option("--owner", help="Your Kaggle user name.")]
TitleOption = Annotated[str | None, typer.Option("--title", help="Title on Kaggle, 5 to 50 characters.")]
SourceOption = Annotated[list[str], typer.Option("--source", help="owner/slug of a kernel whose output is attached.")]
DatasetOption = Annotated[list[str], typer.Option("--dataset", help="owner/slug of a dataset to attach.")]
HoursOption = Annotated[float, typer.Option("--hours", min=0.001, max=12, help="Stop before so many hours.")]
InternetOption = Annotated[bool, typer.Option("--internet", help="Take encoder weights from timm's hub.")]
NotebookOption = Annotated[bool, typer.Option("--notebook", help="A notebook to read instead of a script.")]
FoldOption = Annotated[str, typer.Option("--fold", help="A number, 0,2, all, none (all cars) or all,none.")]
DirtyOption = Annotated[bool, typer.Option("--dirty", help="Pack uncommitted changes; the kernel says so.")]
TogetherOption = Annotated[bool, typer.Option("--together", help="Each fold on all GPUs, one after the other.")]
LabelsOption = Annotated[str | None, typer.Option("--labels", help="Make labels too, to train on: hard or soft ones.")]
FolderOption = Annotated[Path, typer.Option("--output", help="Folder of the kernels' folders.")]


@app.command("train")
def build_train(
    experiment: str, owner: OwnerOption,
    folds: FoldOption = "0,1",  # two T4 train two at a time
    overrides: OverridesOption = (), together: TogetherOption = False, tta: TtaOption = "hflip",
    hours: HoursOption = 11.5, title: TitleOption = None, source: SourceOption = (),
    dataset: DatasetOption = (), internet: InternetOption = False, notebook: NotebookOption = False,
    cars: CarsOption = None, folds_file: FoldsOption = FOLDS, dirty: DirtyOption = False,
    output: FolderOption = BUILD, budget: BudgetOption = None,
    labels: Annotated[bool, typer.Option("--labels", help="Train on the labels of a --source too.")] = False,
) -> None:  # fmt: skip
    """Trains folds of an experiment."""
    numbers = parse_folds(folds, folds_file)
    settings = train_settings(experiment, numbers, list(overrides), tta, hours, together, budget, labels)
    title = title or f"carvana {slugify(experiment)} folds {folds.replace(',', ' ')}"
    kernel = Kernel(
        "train", title, owner, settings, internet=internet, notebook=notebook, sources=source, datasets=dataset,
        cars=cars, folds_file=folds_file,
    )  # fmt: skip
    build(kernel, output, dirty)


@app.command("submit")
def build_submit(
    experiments: list[str], owner: OwnerOption,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts; the merge kernel joins them.")] = "1/1",
    threshold: ThresholdOption = None, tta: TtaOption = "hflip", hours: HoursOption = 11.5, title: TitleOption = None,
    source: SourceOption = (), dataset: DatasetOption = (), notebook: NotebookOption = False, cars: CarsOption = None,
    dirty: DirtyOption = False, output: FolderOption = BUILD, fold: NetworksOption = None, labels: LabelsOption = None,
) -> None:  # fmt: skip
    """Predicts the test photos, or a shard of them, with trained folds."""
    from carvana.submission.manifest import parse_shard  # with PyTorch, which takes a second

    number, count = parse_shard(shard)
    settings = submit_settings(experiments, (number, count), tta, threshold, hours, fold, labels)
    title = title or f"carvana {slugify(experiments[0])} shard {number} of {count}"
    kernel = Kernel("submit", title, owner, settings, notebook=notebook, sources=source, datasets=dataset, cars=cars)
    build(kernel, output, dirty)


@app.command("merge")
def build_merge(
    owner: OwnerOption, title: TitleOption = "carvana merge", source: SourceOption = (), dataset: DatasetOption = (),
    notebook: NotebookOption = False, cars: CarsOption = None, dirty: DirtyOption = False, output: FolderOption = BUILD,
) -> None:  # fmt: skip
    """Joins shards to one submission; needs no GPU."""
    kernel = Kernel(
        "merge", title, owner, {"hours": 1.0}, gpu=False, notebook=notebook, sources=source, datasets=dataset, cars=cars
    )
    build(kernel, output, dirty)


if __name__ == "__main__":
    run(app)
