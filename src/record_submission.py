"""Notes a submission that another machine made in the table of them: `python src/record_submission.py FILE`

`src/make_submission.py` and `src/merge_submissions.py` do it themselves for a file beside the table.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana.command import JOURNAL, RUNS, JournalOption, RunsOption, run
from carvana.journal import add_row, describe
from carvana.shards import manifest_path, read_manifest


def main(
    file: Annotated[Path, typer.Argument(help="The CSV, with its manifest, <file>.json, beside it.")],
    command: Annotated[str, typer.Option(help="What made it, for the table.")] = "",
    runs: RunsOption = RUNS,
    journal: JournalOption = JOURNAL,
) -> None:
    row = describe(file, read_manifest(manifest_path(file)), runs, command)
    add_row(journal, row)
    print(f"{journal}: {row['file']}, {row['experiments']}, CV {row['CV (95 % of cars drawn anew)'] or 'not known'}")


if __name__ == "__main__":
    run(main)
