"""Chooses weights, views and threshold out-of-fold: `python src/choose_ensemble.py unet_lite0 unet_resnet34`.

Writes runs/ensemble.json, which src/make_submission.py --ensemble follows.
"""

from pathlib import Path
from typing import Annotated

import typer

import carvana.command  # noqa: F401  before PyTorch, which reads its settings once
from carvana.choice import write_ensemble
from carvana.command import (
    FOLDS,
    INPUT,
    RUNS,
    BatchOption,
    CarsOption,
    FoldsOption,
    InputOption,
    RunsOption,
    WorkersOption,
    run,
)  # fmt: skip
from carvana.device import local_device
from carvana.folds import folds_digest, read_folds
from carvana.images import open_train
from carvana.log import say
from carvana.postprocess import PostProcess
from carvana.provenance import git_commit, versions
from carvana.selection import Row, Search, compare, decide, predict_choices, sample_pixels
from carvana.tta import Mean, parse_views
from carvana.unseen import Unseen, common_checkpoints


def main(
    experiments: Annotated[list[str], typer.Argument(help="Names of trained experiments, as under runs/.")],
    tta: Annotated[str, typer.Option("--tta", help="Views to choose from, joined by commas.")] = "hflip",
    mean: Annotated[Mean, typer.Option(help="What is averaged over views: probs or logits.")] = "probs",
    holes: Annotated[int, typer.Option(min=0, help="Try filling holes of fewer pixels; 0: do not.")] = 2000,
    parts: Annotated[int, typer.Option(min=0, help="Try dropping parts of fewer pixels; 0: do not.")] = 2000,
    memory: Annotated[int, typer.Option(min=1, help="MiB for the sample of pixels.")] = 256,
    together: Annotated[bool, typer.Option(help="Views of equal size in one forward: faster on a GPU.")] = False,
    output: Annotated[Path | None, typer.Option(help="By default ensemble.json in the folder of the runs.")] = None,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    folds_file: FoldsOption = FOLDS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
) -> None:
    experiments, views, folds = list(dict.fromkeys(experiments)), parse_views(tta), read_folds(folds_file)
    checkpoints = common_checkpoints(runs, experiments, folds_digest(folds))
    photos, device = open_train(input_root, cars), local_device()
    unseen = Unseen(checkpoints, photos, folds, device, batch_size, num_workers)
    print(f"{len(unseen.cars)} photos of {len(set(unseen.cars))} cars, fold {', '.join(map(str, checkpoints))}")

    sample = sample_pixels(unseen, experiments, views, memory * 2**20, together)
    if sample.sampled:
        say(f"note: of {sample.sampled} photos only a part of the undecided pixels fits; --memory may be raised")
    search = Search(sample, experiments, views, mean)
    simplest, ladder = search.simplest(), search.ladder()
    print("on a sample of pixels:")
    report([compare(choice, search.dices(choice), search.dices(simplest), unseen.cars) for choice in ladder])

    repairs = list(dict.fromkeys(PostProcess(a, b) for a in (0, holes) for b in (0, parts)))
    choices = [simplest] if ladder[-1] == simplest else [simplest, ladder[-1]]
    chosen, rows = decide(choices, repairs, predict_choices(unseen, choices, repairs, together), unseen.cars)
    print("on whole masks:")
    report(rows)
    if not chosen.is_real:
        print("the gain of what was found lies inside the noise: the simplest choice is kept")
    output = output or runs / "ensemble.json"
    write_ensemble(output, chosen.choice, checkpoints, describe(chosen, rows[0], unseen))
    print(f"{output}: {chosen.choice}: out-of-fold Dice {chosen.dice:.5f}")


def describe(chosen: Row, simplest: Row, unseen: Unseen) -> dict:
    """What the file says beside the choice: its scores, the simplest choice's, and where they come from."""
    return {
        **{key: value for key, value in chosen._asdict().items() if key != "choice"},
        "simplest": simplest.choice.model_dump(mode="json") | {"dice": simplest.dice},
        "photos": len(unseen.cars),
        "cars": len(set(unseen.cars)),
        "folds_digest": folds_digest(unseen.folds),
        "commit": git_commit(),
        "versions": versions(),
    }


def report(rows: list[Row]) -> None:
    """One line a choice; the same choice once."""
    print(f"  {'Dice':7}  {'95 % interval':16}  {'gain':8}  {'95 % interval':18}  choice")
    shown = []
    for row in rows:
        if row.choice not in shown:
            shown.append(row.choice)
            low, high = row.interval
            least, most = row.gain_interval
            print(f"  {row.dice:.5f}  {low:.5f}-{high:.5f}  {row.gain:+.5f}  {least:+.5f} {most:+.5f}  {row.choice}")


if __name__ == "__main__":
    run(main)
