"""A submission's way: uploaded once, scored by Kaggle, recorded in submissions/log.jsonl."""

import json
import time
from pathlib import Path

from client import Client
from ledger import Ledger
from outputs import output_of, read_status, script_output

from carvana.errors import InputError


def submission_message(ledger: Ledger, job: str, experiment: str, runs: Path, digest: str) -> str:
    """What a submission is made of: from the sessions that predicted it, and the experiment's out-of-fold table.

    A network of all cars that was trained without folds beside it has no table. The file's digest is in it, so that on
    Kaggle no two files have one message.
    """
    entries = ledger.last_rounds(job)
    summary = read_status(output_of(entries[0])) if entries else None
    if not summary:
        raise InputError(f"{job}: no session of it was fetched; `launch.py push submit` does it")
    views, fold = entries[0].settings["tta"], entries[0].settings.get("fold")
    commit = f"commit {summary['commit'][:7]}, file {digest[:7]}"
    if fold == "none" and not (runs / experiment / "oof.json").exists():
        return f"{experiment}, fold none, {views}, no CV, {commit}"
    try:
        oof = json.loads((runs / experiment / "oof.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{runs / experiment}: {error}; `launch.py push train` puts it there") from None
    networks, score = f"folds {' '.join(oof['folds'])}", f"CV {oof['dice']:.5f} of {oof['photos']} photos"
    if fold:  # these networks have no score of their own
        networks, score = f"fold {fold}", f"the folds' {score}"
    return f"{experiment}, {networks}, {views}, {score}, {commit}"


def upload(file: Path, message: str, digest: str, ledger: Ledger, client: Client) -> None:
    """Uploads a submission, unless an interrupted command has done it. Raises InputError if none is left today."""
    states, arrived = ledger.content["submissions"], ledger.content.setdefault("arrived", {})  # before it is uploaded
    if states.get(digest) != "pushing":
        if client.submissions_left() == 0:
            raise InputError(f"{file}: not submitted: none of today's submissions is left; days begin at 0:00 UTC")
        arrived[digest] = len(client.submissions(message))
    states[digest] = "pushing"
    ledger.save()
    client.submit(file, message, arrived.get(digest, 0))


def wait_for_score(client: Client, message: str, poll: float) -> dict:
    """The newest submission with this message, once Kaggle has done with it."""
    while True:
        rows = client.submissions(message)
        if rows and not rows[0]["status"].upper().endswith("PENDING"):
            return rows[0]
        time.sleep(poll)


def record_submission(file: Path, command: str, runs: Path, journal: Path) -> None:
    """Adds the CSV to the journal of submissions."""
    failure = f"{file} was submitted, but is not in {journal}; src/submission.py record adds it"
    options = ["--command", command, "--runs", runs, "--journal", journal]
    script_output(failure, "submission.py", "record", file, *options)


def record_scores(file: Path, public: str, private: str, journal: Path) -> None:
    """Adds what the leaderboard gave to the journal; an empty string is a score that is not shown yet."""
    options = [part for part in (f"--public={public}", f"--private={private}") if not part.endswith("=")]
    if not options:
        raise InputError(f"{file}: scored, but Kaggle shows no score yet; give the command again")
    failure = f"{file}: {' '.join(options)}, not recorded"
    print(script_output(failure, "submission.py", "record", file, *options, "--journal", journal), end="")
