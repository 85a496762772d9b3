"""Cuts cars out of your own photos, of any size: `python src/cut_out.py unet_lite0 --photos FOLDER --output DIR`.

Writes `<name>_mask.png`, how much of each pixel is car, `<name>_cutout.png`, transparent around the car, and
`cutouts.html` to look at them. The networks know white studios only.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    experiments: command.NamesArgument = None,
    photos: Annotated[Path, typer.Option(help="The folder of your photos.")] = ...,
    output: Annotated[Path, typer.Option(help="Where all is written; may be the folder of the photos.")] = ...,
    background: Annotated[str | None, typer.Option(help="white, '#rrggbb' or a picture's FILE to set cars on.")] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Masks of 0 and 255, rims as in the photo.")] = False,
    tiles: Annotated[bool, typer.Option("--tiles", help="See contours of large photos at training's scale.")] = False,
    ensemble: command.EnsembleOption = None, tta: command.TtaOption = None, threshold: command.ThresholdOption = None,
    fold: command.NetworksOption = None, runs: command.RunsOption = command.RUNS,
    backend: command.BackendOption = "torch", overwrite: command.OverwriteOption = False,
    precision: command.PrecisionOption = "auto",
) -> None:  # fmt: skip
    from carvana.data.loader import Loading
    from carvana.data.own_photos import find_photos
    from carvana.device import local_device
    from carvana.pages.cutouts import Style, write_cutouts
    from carvana.submission.choice import build_predictor, choose

    targets, style = find_photos(photos, output), Style(hard, background, tiles)
    style.open_background()  # a mistake is said before networks are loaded
    choice, networks = choose(experiments, ensemble, runs, tta, threshold, fold)
    predictor = build_predictor(choice, networks, local_device(precision), Loading(), backend)
    digests = [network.digest for folds in networks.values() for network in folds]
    networks = " ".join([*digests, predictor.device.precision, backend])
    kept, faults = write_cutouts(predictor, choice, targets, output, style, overwrite, networks)
    cut = f"{len(targets) - len(faults)} photos" + f", {kept} of them kept from before" * (kept > 0)
    print(f"{output}: masks and cut-outs of {cut}; threshold {choice.threshold:g}, {style}; look at cutouts.html")
    if faults:
        print(f"{len(faults)} photos were not cut: see above, or {output / 'cutouts.html'}")
        raise typer.Exit(1)


if __name__ == "__main__":
    command.run(main)
