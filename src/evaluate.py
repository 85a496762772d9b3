"""Scores experiments out-of-fold: `python src/evaluate.py unet_lite0 --tta hflip`.

`evaluate.py unet_lite0_640 --compare unet_lite0` also says whether unet_lite0_640 is better than unet_lite0, or only
luckier with its cars. With `--soft` the probabilities can be trained on: `data.soft`.
"""

from typing import Annotated

import typer

from carvana import command


def main(
    experiments: command.ExperimentsArgument, tta: command.TtaOption = "hflip",
    other: Annotated[str | None, typer.Option("--compare", help="An evaluated one to compare each with.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Keep the probabilities too, in oof_soft.zip.")] = False,
    input_root: command.InputOption = command.INPUT, runs: command.RunsOption = command.RUNS,
    folds_file: command.FoldsOption = command.FOLDS, cars: command.CarsOption = None,
    batch_size: command.BatchOption = 4, num_workers: command.WorkersOption = 2,
    backend: command.BackendOption = "torch", count: command.DevicesOption = None,
    precision: command.PrecisionOption = "auto",
) -> None:  # fmt: skip
    from carvana.data.folds import read_folds
    from carvana.data.images import open_train
    from carvana.data.loader import Loading
    from carvana.device import open_devices
    from carvana.evaluation.comparison import compare, comparison_lines
    from carvana.evaluation.oof import Unseen, predict_oof
    from carvana.evaluation.summary import SOFT_MASKS, read_current_oof, summary_lines, write_oof
    from carvana.evaluation.trained import common_checkpoints, unchanged, unscored_line
    from carvana.models.checkpoint import photos_of
    from carvana.prediction.tta import parse_views

    views, folds = parse_views(tta), read_folds(folds_file)
    checkpoints = {experiment: common_checkpoints(runs, [experiment], folds) for experiment in experiments}
    if other and other not in experiments:
        read_current_oof(runs / other)  # a mistake is said before the work
    devices, loading = open_devices(count, precision), Loading(batch_size, num_workers)
    for experiment, paths in checkpoints.items():
        photos = open_train(input_root, cars, photos_of(fold[experiment] for fold in paths.values()))
        unseen = Unseen(paths, photos, folds, devices[0], loading)
        with unchanged(paths):
            oof = predict_oof(unseen, views, backend, devices, soft)
        summary = write_oof(runs / experiment, oof, unseen, views)
        print("\n".join(summary_lines(summary)))
        if note := unscored_line(runs / experiment):
            print(f"  {note}")
        names = ["oof.csv", "oof.json", *[SOFT_MASKS] * soft]
        print(f"  written: {', '.join(str(runs / experiment / name) for name in names)}")
    for experiment in experiments if other else ():
        (reference, reference_oof), (summary, oof) = (read_current_oof(runs / name) for name in (other, experiment))
        print("\n".join(comparison_lines(reference, summary, compare(reference_oof.table, oof.table))))


if __name__ == "__main__":
    command.run(main)
