"""A submission's way: uploaded once, scored by Kaggle, recorded in submissions/log.jsonl."""

import time
from pathlib import Path

from client import Client
from ledger import Ledger
from outputs import script_output

from carvana.errors import InputError


def submission_message(file: Path, runs: Path, digest: str) -> str:
    """What a submission is made of, by the manifest beside it, and its networks' out-of-fold score, if they have one.

    It ends as `ending_of` says, so that on Kaggle no two files have one message.
    """
    from carvana.submission import journal, manifest  # with PyTorch, which takes a second

    facts = manifest.read_manifest(manifest.manifest_path(file))
    if facts.digest != digest:
        raise InputError(f"{file}: not the file of its .json; `launch.py push submit` fetches both again")
    record = journal.build_record(file, facts, runs, command="")
    names = dict.fromkeys(" ".join(map(str, folds)) for folds in record["folds"].values())
    networks = "; ".join(f"folds {folds}" if " " in folds else f"fold {folds}" for folds in names)
    score = f"CV {cv}" if (cv := journal.cv_text(record)) else "no CV"
    made = f"{journal.experiments_text(record)}, {networks}, {' + '.join(facts.views)}"
    return f"{made}, {score}, commit {facts.commit[:7]}, {ending_of(digest)}"


def ending_of(digest: str) -> str:
    """Of the messages of all uploads of a file."""
    return f"file {digest[:7]}"


def upload(file: Path, message: str, digest: str, ledger: Ledger, client: Client) -> None:
    """Uploads a submission, unless an interrupted command has done it. Raises InputError if none is left today."""
    states, arrived = ledger.content["submissions"], ledger.content.setdefault("arrived", {})  # before it is uploaded
    if states.get(digest) != "pushing":
        if client.submissions_left() == 0:
            raise InputError(f"{file}: not submitted: none of today's submissions is left; days begin at 0:00 UTC")
        arrived[digest] = len(client.submissions(ending_of(digest)))
    states[digest] = "pushing"
    ledger.save()
    client.submit(file, message, ending_of(digest), arrived.get(digest, 0))


def wait_for_score(client: Client, digest: str, poll: float) -> dict:
    """The newest submission of this file, once Kaggle has done with it."""
    while True:
        rows = client.submissions(ending_of(digest))
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
