"""Cuts cars out of your own photos, of any size: `python src/cut_out.py unet_lite0 --photos FOLDER --output DIR`.

Writes `<name>_mask.png` and `<name>_cutout.png`, transparent around the car. The networks know white studios only.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    experiments: command.NamesArgument = None,
    photos: Annotated[Path, typer.Option(help="The folder of your photos.")] = ...,
    output: Annotated[Path, typer.Option(help="Where masks and cut-outs are written, as PNG.")] = ...,
    ensemble: command.EnsembleOption = None, tta: command.TtaOption = None, threshold: command.ThresholdOption = None,
    runs: command.RunsOption = command.RUNS, backend: command.BackendOption = "torch",
) -> None:  # fmt: skip
    from carvana.data.loader import Loading
    from carvana.device import local_device
    from carvana.pages.cutouts import find_pictures, write_cutouts
    from carvana.submission.job import build_predictor, choose

    choice, checkpoints = choose(experiments, ensemble, runs, tta, threshold)
    paths = find_pictures(photos)
    predictor = build_predictor(choice, checkpoints, local_device(), Loading(), backend)
    unreadable = write_cutouts(predictor, paths, output, choice)
    print(f"{output}: masks and cut-outs of {len(paths) - unreadable} photos, threshold {choice.threshold:g}")
    if unreadable:
        raise typer.Exit(1)


if __name__ == "__main__":
    command.run(main)
