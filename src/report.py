"""What an experiment does, as a page to open: `python src/report.py unet_lite0 unet_lite0_640`.

The first experiment is looked at; the others stand beside it. src/evaluate.py must have scored them all.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana.command import INPUT, JOURNAL, RUNS, InputOption, JournalOption, RunsOption, run
from carvana.images import open_train
from carvana.report import write_report


def main(
    experiments: Annotated[list[str], typer.Argument(help="Names of evaluated experiments, as under runs/.")],
    output: Annotated[
        Path | None, typer.Option(help="The page; runs/<first experiment>/report.html by default.")
    ] = None,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    journal: JournalOption = JOURNAL,
    worst: Annotated[int, typer.Option(min=1, max=60, help="Worst photos to show in full.")] = 40,
    sample: Annotated[int, typer.Option(min=0, max=40, help="Other photos to show, evenly from good and bad.")] = 20,
) -> None:
    page = output or runs / experiments[0] / "report.html"
    folders = [runs / name for name in dict.fromkeys(experiments)]
    told = write_report(page, folders, open_train(input_root), journal, worst, sample)
    size = page.stat().st_size / 1e6
    print(f"{page}: {told['photos']} photos, Dice {told['dice']:.5f}, {size:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run(main)
