"""Chooses weights, views and threshold out-of-fold: `python src/choose_ensemble.py unet_lite0 unet_resnet34_512`.

Writes runs/ensemble.json, which src/make_submission.py --ensemble follows.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    experiments: command.ExperimentsArgument,
    tta: Annotated[str, typer.Option("--tta", help="Views to choose from, joined by commas.")] = "hflip",
    holes: Annotated[int, typer.Option(min=0, help="Try filling holes of fewer pixels; 0: do not.")] = 2000,
    parts: Annotated[int, typer.Option(min=0, help="Try dropping parts of fewer pixels; 0: do not.")] = 2000,
    memory: Annotated[int, typer.Option(min=1, help="MiB for the sample of pixels.")] = 256,
    output: Annotated[Path | None, typer.Option(help="By default ensemble.json in the folder of the runs.")] = None,
    input_root: command.InputOption = command.INPUT, runs: command.RunsOption = command.RUNS,
    folds_file: command.FoldsOption = command.FOLDS, cars: command.CarsOption = None,
    batch_size: command.BatchOption = 4, num_workers: command.WorkersOption = 2,
    precision: command.PrecisionOption = "auto",
) -> None:  # fmt: skip
    from carvana.data.folds import read_folds
    from carvana.data.images import open_train
    from carvana.data.loader import Loading
    from carvana.device import local_device
    from carvana.evaluation.oof import Unseen
    from carvana.evaluation.selection import row_lines, select_ensemble
    from carvana.evaluation.trained import common_checkpoints, unchanged
    from carvana.models.checkpoint import photos_of
    from carvana.prediction.ensemble import write_ensemble
    from carvana.prediction.tta import parse_views

    experiments, views, folds = list(dict.fromkeys(experiments)), parse_views(tta), read_folds(folds_file)
    checkpoints = common_checkpoints(runs, experiments, folds)
    photos = open_train(input_root, cars, photos_of(path for fold in checkpoints.values() for path in fold.values()))
    unseen = Unseen(checkpoints, photos, folds, local_device(precision), Loading(batch_size, num_workers))
    print(f"{len(unseen.cars)} photos of {len(set(unseen.cars))} cars, fold {', '.join(map(str, checkpoints))}")
    with unchanged(checkpoints):
        result = select_ensemble(unseen, experiments, views, (holes, parts), memory * 2**20)
    print("\n".join(["on a sample of pixels:", *row_lines(result.ladder), "on whole masks:", *row_lines(result.rows)]))
    simplest = result.rows[0].choice
    if result.winner.choice.model_copy(update={"postprocess": simplest.postprocess}) == simplest:
        print("the gain of the best combination lies inside the noise: the simplest choice is kept")
    path = output or runs / "ensemble.json"
    write_ensemble(path, result.winner.choice, checkpoints, result.facts(unseen))
    print(f"{path}: {result.winner.choice}: out-of-fold Dice {result.winner.dice:.5f}")


if __name__ == "__main__":
    command.run(main)
