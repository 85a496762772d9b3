"""What sessions have left: fetched, and put where the scripts of `src/` look for it, runs/ and submissions/."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from client import FETCHED, Client, last_line
from ledger import Entry, Ledger
from packing import BUILD, REPOSITORY
from runtime import digest_of

from carvana.errors import InputError
from carvana.log import replacing

FETCHES = 3
ROUNDS = 8  # sessions that continue one another


def output_of(entry: Entry) -> Path:
    """Where a session's output is fetched to."""
    return BUILD / "output" / entry.kernel.rpartition("/")[2]


def fetch_output(entry: Entry, ledger: Ledger, client: Client) -> None:
    """Fetches a session's output; plans another round if its hours were over.

    Raises InputError if it does not arrive whole; the session stays `complete`, to be fetched again.
    """
    folder = output_of(entry)
    for _ in range(FETCHES):
        client.fetch(entry.kernel, folder)
        summary = read_status(folder)
        cut = damaged(folder, summary) if summary else ["status.json"]
        if not cut:
            break
    if cut and (summary or not entry.faults):  # a session that was ended early has left no status.json
        raise InputError(f"{entry.name}: {cut[0]} does not arrive whole; give the command again")
    entry.faults += summary["faults"] if summary else ["it left no status.json"]
    entry.state = "failed" if entry.faults else "done"
    if entry.state == "done" and not summary["finished"]:
        if entry.round == ROUNDS:
            raise InputError(f"{entry.name}: not finished after {ROUNDS} sessions; see {folder}")
        sources = [*dict.fromkeys([*entry.sources, entry.kernel])]
        ledger.entries.append(Entry(entry.job, entry.part, entry.settings, sources, round=entry.round + 1))
    ledger.save()


def read_status(folder: Path) -> dict | None:
    """The summary that a kernel leaves; None if it cannot be read."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None


def damaged(folder: Path, summary: dict) -> list[str]:
    """Files of the kernel's list that were to be fetched, but are missing or differ from what it wrote."""
    return [
        name for name, digest in summary["files"].items()
        if re.search(FETCHED, name) and (not (folder / name).is_file() or digest_of(folder / name) != digest)
    ]  # fmt: skip


def collect_runs(ledger: Ledger, job: str, experiment: str, runs: Path) -> None:
    """Copies trained folds into runs/ and joins their out-of-fold tables; a session on all cars alone has none."""
    parts, target = [output_of(entry) / "runs" / experiment for entry in ledger.last_rounds(job)], runs / experiment
    for fold in (fold for part in parts for fold in sorted([*part.glob("fold*"), *part.glob("none")])):
        replace_run(target / fold.name, fold)
    if evaluated := [part for part in parts if not (part / "none").exists() or (part / "oof.json").exists()]:
        join = ["submission.py", "merge-oof", *evaluated, "--output", target]
        print(script_output(f"{target}: not joined", *join), end="")
    summaries = filter(None, map(read_status, map(output_of, ledger.of(job))))
    if len(commits := {summary["commit"] for summary in summaries}) > 1:
        print(f"note: {target}: trained by different code, commits {', '.join(sorted(commits))}")
    all_cars = " and the network of all cars" if (target / "none").exists() else ""
    print(f"{target}: {len(list(target.glob('fold*')))} folds{all_cars}")


def replace_run(target: Path, fetched: Path) -> None:
    """Puts a fetched run where an earlier part of it may lie. Raises InputError if another run lies there."""
    logs = [path.read_bytes() if (path := run / "log.jsonl").exists() else b"" for run in (target, fetched)]
    without_log = not logs[0] and (target / "best.safetensors").exists()
    if without_log or not logs[1].startswith(logs[0]):
        raise InputError(f"{target}: holds another run than the fetched {fetched}; move it away, or give --runs")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a copy that was killed
    shutil.copytree(fetched, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def collect_submission(output: Path, target: Path) -> None:
    """Copies a kernel's CSV, and what it was made of, beside each other."""
    for ending in ("", ".json"):
        collect_file(output / f"submission.csv.gz{ending}", target.with_name(target.name + ending))


def collect_file(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def script_output(failure: str, script: str, *arguments: object) -> str:
    """What a script of `src/` prints. Raises InputError with `failure` and the script's last line if it fails."""
    command = [sys.executable, REPOSITORY / "src" / script, *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise InputError(f"{failure}: {last_line(result.stderr)}")
    return result.stdout
