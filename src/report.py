"""Writes a page about an evaluated experiment, others beside it: `python src/report.py unet_lite0 unet_lite0_640`."""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command


def main(
    experiments: command.ExperimentsArgument,
    output: Annotated[Path | None, typer.Option(help="The page; by default runs/<first one>/report.html.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of make_submission.py to show as well.")] = None,
    labels_input: Annotated[Path | None, typer.Option(help="Where their photos are; by default --input.")] = None,
    input_root: command.InputOption = command.INPUT, runs: command.RunsOption = command.RUNS,
    journal: command.JournalOption = command.JOURNAL,
    worst: Annotated[int, typer.Option(min=1, max=60, help="Worst photos to show, and least sure labels.")] = 40,
    sample: Annotated[int, typer.Option(min=0, max=40, help="Other photos to show, evenly from good and bad.")] = 20,
) -> None:  # fmt: skip
    from carvana.data.images import open_test, open_train
    from carvana.pages.labelled import read_labelled
    from carvana.pages.report import write_report

    page = output or runs / experiments[0] / "report.html"
    folders = [runs / name for name in dict.fromkeys(experiments)]
    labelled = read_labelled(labels, open_test(labels_input or input_root), worst) if labels else None
    summary = write_report(page, folders, open_train(input_root), journal, worst, sample, labelled)
    print(f"{page}: {summary['photos']} photos, Dice {summary['dice']:.5f}; open it in a browser")


if __name__ == "__main__":
    command.run(main)
