"""Checks, scores, merges and records submissions: `python src/submission.py check submissions/unet_lite0.csv.gz`."""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command

app = typer.Typer(help=__doc__, add_completion=False)
OutputOption = Annotated[Path, typer.Option("--output", help="Where the joined one is written.")]
ScoreOption = Annotated[float | None, typer.Option(min=0, max=1, help="What the leaderboard gave.")]


@app.command()
def check(
    file: command.FileArgument, input_root: command.InputOption = command.INPUT, size: command.SizeOption = "1280x1918",
    sample: Annotated[Path | None, typer.Option(help="Another sample_submission.csv than the input folder's.")] = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Masks may be empty, full or all alike.")] = False,
) -> None:  # fmt: skip
    """Says OK, or lists the first ten faults and exits with status 1; what only looks odd is a warning."""
    from carvana.submission.checker import check_lines

    sample = sample or input_root / "sample_submission.csv"
    lines, ok = check_lines(file, sample, command.parse_size(size), allow_empty)
    print("\n".join(lines))
    if not ok:
        raise typer.Exit(1)


@app.command()
def score(
    file: command.FileArgument,
    truth: Annotated[Path, typer.Option(help="Folder or zip of <image_id>_mask.gif, or one with train_masks in it.")],
) -> None:
    """Prints the mean Dice over the photos of FILE, as Kaggle would give it, and the worst five."""
    from carvana.submission.checker import score_lines

    print("\n".join(score_lines(file, truth)))


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Parts of make_submission.py --shard, each beside its manifest.")],
    output: OutputOption, input_root: command.InputOption = command.INPUT, runs: command.RunsOption = command.RUNS,
    cars: command.CarsOption = None,
) -> None:  # fmt: skip
    """Joins submissions, labels or soft masks of one prediction, in any order, if they are one and whole."""
    from carvana.submission.blocks import ROWS
    from carvana.submission.journal import note_submission
    from carvana.submission.merge import merge_parts

    whole = merge_parts(parts, output, input_root, cars)
    if whole.kind == ROWS and cars is None:
        note_submission(output, runs, command.command_line())
    checked = ", checked" if whole.kind == ROWS else ""
    print(f"{output}: {whole.kind} of {whole.photos} photos, {len(parts)} parts{checked}")


@app.command()
def merge_oof(
    parts: Annotated[list[Path], typer.Argument(help="Folders of an experiment, each evaluated on its own folds.")],
    output: OutputOption,
) -> None:
    """Joins out-of-fold results of folds that were evaluated apart, on several machines or in several sessions."""
    from carvana.evaluation import summary

    print("\n".join(summary.summary_lines(summary.merge_oof(parts, output))))


@app.command()
def record(
    file: command.FileArgument, public: ScoreOption = None, private: ScoreOption = None,
    made_by: Annotated[str, typer.Option("--command", help="What made it, if another machine did.")] = "",
    runs: command.RunsOption = command.RUNS, journal: command.JournalOption = command.JOURNAL,
) -> None:  # fmt: skip
    """Notes the leaderboard's scores in the log; without scores, a submission that another machine made."""
    from carvana.submission.journal import cv_text, experiments_text, record_score, record_submission

    if public is None and private is None:
        noted = record_submission(journal, file, runs, made_by)
    else:
        noted = record_score(journal, file.name, public, private)
    scores = [f"{board} {'not known' if noted[board] is None else noted[board]}" for board in ("public", "private")]
    print(f"{journal}: {file.name}, {experiments_text(noted)}, CV {cv_text(noted) or 'not known'}, {', '.join(scores)}")


if __name__ == "__main__":
    command.run(app)
