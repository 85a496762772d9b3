"""What sessions have left, put where the scripts of `src/` look for it: runs/ and submissions/."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from client import last_line
from ledger import Ledger
from packing import REPOSITORY
from sessions import output_of, read_status
from settings import encoder_of

from carvana.command import EXPERIMENTS, FOLDS
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.log import replacing

ANGLES = 16  # photos of a car


def collect_runs(ledger: Ledger, job: str, experiment: str, runs: Path) -> None:
    """Copies trained folds into runs/ and joins their out-of-fold tables."""
    parts, target = [output_of(entry) / "runs" / experiment for entry in ledger.last_rounds(job)], runs / experiment
    for fold in (fold for part in parts for fold in sorted(part.glob("fold*"))):
        shutil.copytree(fold, target / fold.name, dirs_exist_ok=True)
    print(script_output(f"{target}: not joined", "submission.py", "merge-oof", *parts, "--output", target), end="")
    print(f"{target}: {len(list(target.glob('fold*')))} folds; now `launch.py push submit`")


def collect_submission(output: Path, target: Path) -> None:
    """Copies a kernel's CSV, and what it was made of, beside each other."""
    for ending in ("", ".json"):
        collect_file(output / f"submission.csv.gz{ending}", target.with_name(target.name + ending))


def collect_file(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def submission_message(ledger: Ledger, job: str, experiment: str, runs: Path) -> str:
    """What a submission is made of: from the sessions that predicted it, and the experiment's out-of-fold table."""
    entries = ledger.last_rounds(job)
    summary = read_status(output_of(entries[0])) if entries else None
    if not summary:
        raise InputError(f"{job}: no session of it was fetched; `launch.py push submit` does it")
    try:
        oof = json.loads((runs / experiment / "oof.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{runs / experiment}: {error}; `launch.py push train` puts it there") from None
    views, folds, commit = entries[0].settings["tta"], " ".join(oof["folds"]), summary["commit"][:7]
    return f"{experiment}, folds {folds}, {views}, CV {oof['dice']:.5f} of {oof['photos']} photos, commit {commit}"


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


def measured_hours(file: Path, experiment: str, folds: list[int], overrides: list[str]) -> dict[int, float]:
    """Hours of each of a session's folds, at the rates in selftest.json; none if it does not hold what is trained.

    Earlier stages are taken to cost what their pixels cost; the folds share the CPUs that load photos.
    """
    try:
        rates = json.loads(file.read_text())["experiments"][experiment]
        train, predict = max(rates["train_photos_per_second"].values()), rates["predict_photos_per_second"]
    except (OSError, ValueError, KeyError):  # an experiment that did not fit the GPU has no rates
        return {}
    if not all(override.startswith("train.epochs=") for override in overrides):
        return {}
    load = (rates["loader_photos_per_second"] or math.inf) / len(folds)
    last = load_experiment(experiment, EXPERIMENTS, overrides)
    cars = Counter(int(line.rpartition(",")[2]) for line in FOLDS.read_text().splitlines()[1:])  # by fold
    hours = dict.fromkeys(folds, 0.0)
    for fold, stage in itertools.product(folds, last.stages):
        size = math.prod(stage.data.size) / math.prod(last.data.size)
        crop = math.prod(stage.data.crop or stage.data.size) / math.prod(last.data.crop or last.data.size)
        epoch = (cars.total() - cars[fold]) / min(train / crop, load) + cars[fold] / min(predict / size, load)
        hours[fold] += stage.train.epochs * ANGLES * epoch / 3600
    return hours


def computed_hours(experiment: str, folds: list[int], overrides: list[str]) -> dict[int, float]:
    """Hours of each fold on a T4, as src/train.py computes them."""
    encoder_of(experiment, overrides)  # an unknown experiment is refused with the list of the known ones
    options = [part for override in overrides for part in ("--set", override)]
    options += ["--fold", ",".join(map(str, folds)), "--dry-run", "--no-timing"]
    lines = script_output(experiment, "train.py", experiment, *options)
    return {int(fold): float(hours) for fold, hours in re.findall(r"fold (\d+) on a T4: ([\d.]+) hours", lines)}


def script_output(failure: str, script: str, *arguments: object) -> str:
    """What a script of `src/` prints. Raises InputError with `failure` and the script's last line if it fails."""
    command = [sys.executable, REPOSITORY / "src" / script, *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise InputError(f"{failure}: {last_line(result.stderr)}")
    return result.stdout
