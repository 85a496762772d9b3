"""Notes what the leaderboard gave: `python src/record_score.py unet_lite0.csv.gz --public 0.99712 --private 0.99684`"""

from typing import Annotated

import typer

from carvana.command import JOURNAL, JournalOption, run
from carvana.errors import InputError
from carvana.journal import record_score

Score = Annotated[float | None, typer.Option(min=0, max=1)]


def main(
    file: Annotated[str, typer.Argument(metavar="NAME", help="The submission's file name, as in the table.")],
    public: Score = None,
    private: Score = None,
    journal: JournalOption = JOURNAL,
) -> None:
    if public is None and private is None:
        raise InputError("give --public, --private or both")
    row = record_score(journal, file, public, private)
    print(f"{journal}: {file}, public {row['public LB'] or 'not known'}, private {row['private LB'] or 'not known'}")


if __name__ == "__main__":
    run(main)
