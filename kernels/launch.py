"""From a clone to the leaderboard on Kaggle's GPUs: `launch.py plan|weights|push|status|wait|fetch|submit`.

Kaggle's own client does the talking (`pip install -r kernels/requirements.txt`). What was pushed is noted in
`kernels/build/launch.json`: any command may be interrupted and given again, and nothing is pushed twice.
"""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from build import (
    CarsOption,
    DirtyOption,
    FoldsFileOption,
    HoursOption,
    InternetOption,
    OwnerOption,
    TtaOption,
    run,
)
from client import Client
from ledger import Entry, Ledger
from packing import (
    BUILD,
    FOLDS,
    REPOSITORY,
    BuildError,
    encoder_of,
    parse_folds,
    slugify,
    submit_settings,
    train_settings,
)
from runtime import digest_of
from sessions import AT_ONCE, Driver, drive, look, output_of, read_status, take
from weights import make_dataset

LEDGER = BUILD / "launch.json"
GPUS = 2  # of a session: a fold each
QUOTA = 30  # GPU hours a week, by session
SESSION = 11  # hours

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
push = typer.Typer(no_args_is_help=True)
app.add_typer(push, name="push", help="Train folds, or predict the test set: push, wait, fetch, until all is here.")

ExperimentOption = Annotated[str, typer.Option("--experiment", help="Name of a file in src/experiments.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Of this attempt, if another one was begun before.")]
PollOption = Annotated[float, typer.Option("--poll", min=0, help="Seconds between two looks at Kaggle.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where trained folds are put.")]
SubmissionsOption = Annotated[Path, typer.Option("--submissions", help="Where the CSV and the table of them are.")]
SetOption = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="As of src/train.py.")]
FoldsOption = Annotated[str, typer.Option("--folds", help="0-4, 0,2 or 3.")]
RUNS, SUBMISSIONS = REPOSITORY / "runs", REPOSITORY / "submissions"


@app.command()
def weights(encoder: str, owner: OwnerOption) -> None:
    """Uploads an encoder's ImageNet weights as a private dataset, once: kernels have no internet."""
    folder, dataset = make_dataset(encoder, owner, None, BUILD)
    try:
        Client().create_dataset(folder)
    except BuildError as error:
        if "already in use" not in str(error):
            raise
        print(f"{dataset}: is there already")
        return
    print(f"{dataset}: created; give it some minutes before the first push")


@push.command("train")
def push_train(
    experiment: ExperimentOption, owner: OwnerOption, folds: FoldsOption = "0-4", overrides: SetOption = (),
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, internet: InternetOption = False, cars: CarsOption = None,
    folds_file: FoldsFileOption = FOLDS, dirty: DirtyOption = False, name: NameOption = None, poll: PollOption = 60,
    retry: Annotated[bool, typer.Option("--retry", help="Push again what has failed.")] = False,
    runs: RunsOption = RUNS,
) -> None:  # fmt: skip
    """Trains folds, two in a session; their checkpoints come into runs/."""
    ledger, job, numbers = Ledger(LEDGER), job_name("train", experiment, name), parse_folds(folds)
    for first in range(0, len(numbers), GPUS):
        some = numbers[first : first + GPUS]
        settings = train_settings(experiment, some, list(overrides), tta, hours, together=False)
        ledger.plan(Entry(job, "folds " + " ".join(map(str, some)), settings, []))
    encoder = encoder_of(experiment, list(overrides))
    datasets = (f"{owner}/weights-{slugify(encoder)}",) if encoder and not internet else ()
    options = {"internet": internet, "datasets": datasets, "cars": cars, "folds_file": folds_file}
    drive(ledger, job, Driver(owner, "train", options, dirty, poll, retry))
    collect_runs(ledger, job, experiment, runs)


@push.command("submit")
def push_submit(
    experiment: ExperimentOption, owner: OwnerOption,
    shards: Annotated[int, typer.Option(min=1, help="Sessions that share the 100,064 photos.")] = 1,
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, cars: CarsOption = None, dirty: DirtyOption = False,
    threshold: Annotated[float | None, typer.Option(help="By default that of the out-of-fold tables.")] = None,
    name: NameOption = None, poll: PollOption = 60,
    retry: Annotated[bool, typer.Option("--retry", help="Push again what has failed.")] = False,
    submissions: SubmissionsOption = SUBMISSIONS,
) -> None:  # fmt: skip
    """Predicts the test set with what `push train` has trained; the checked CSV comes into submissions/."""
    ledger, job = Ledger(LEDGER), job_name("submit", experiment, name)
    trained = ledger.last_rounds(job_name("train", experiment, name))
    if not trained or any(entry.state != "done" for entry in trained):
        raise BuildError(f"{experiment}: not all of its folds are trained; give `push train` again until they are")
    sources = [entry.kernel for entry in trained]
    for number in range(1, shards + 1):
        settings = submit_settings([experiment], (number, shards), tta, threshold, hours)
        ledger.plan(Entry(job, f"shard {number} of {shards}", settings, sources))
    drive(ledger, job, Driver(owner, "submit", {"cars": cars}, dirty, poll, retry))
    last = ledger.last_rounds(job)
    if shards > 1:
        merging = job_name("merge", experiment, name)
        ledger.plan(Entry(merging, f"{shards} shards", {"hours": 1.0}, [entry.kernel for entry in last]))
        drive(ledger, merging, Driver(owner, "merge", {"cars": cars, "machine": "cpu"}, dirty, poll, retry))
        last = ledger.last_rounds(merging)
    target = submissions / f"{name or experiment}.csv.gz"
    for name_of in ("{}", "{}.json"):  # the CSV, and what it was made of
        copy_whole(
            output_of(last[0]) / name_of.format("submission.csv.gz"), target.with_name(name_of.format(target.name))
        )
    print(f"{target}: whole and checked; now `launch.py submit --experiment {experiment}`")


@app.command()
def status() -> None:
    """What was pushed, and how it stands on Kaggle."""
    ledger, client = Ledger(LEDGER), Client()
    for entry in ledger.entries:
        there = client.status(entry.kernel) if entry.state in ("pushing", "running") else ""
        print(f"{entry.name}: {entry.state} {there.lower()} {entry.kernel}".rstrip())
        for told in entry.faults:
            print(f"  {told}")
    if not ledger.entries:
        print("nothing was pushed yet")


@app.command()
def wait(poll: PollOption = 60) -> None:
    """Waits until no session that was pushed runs any more; pushes nothing."""
    ledger, client = Ledger(LEDGER), Client()
    while look(ledger.entries, ledger, client):
        time.sleep(poll)
    status()


@app.command()
def fetch() -> None:
    """Downloads the output of every session that has ended, as far as it is not here yet."""
    ledger, client = Ledger(LEDGER), Client()
    look(ledger.entries, ledger, client)
    for entry in ledger.entries:
        if entry.state == "complete":
            take(entry, ledger, client)
        print(f"{entry.name}: {entry.state}" + (f", in {output_of(entry)}" if output_of(entry).is_dir() else ""))


@app.command()
def submit(
    experiment: ExperimentOption, name: NameOption = None, runs: RunsOption = RUNS,
    submissions: SubmissionsOption = SUBMISSIONS,
    again: Annotated[bool, typer.Option("--again", help="Upload a file that was uploaded before.")] = False,
) -> None:  # fmt: skip
    """Uploads the CSV with experiment, CV and commit, and notes it in submissions/README.md."""
    ledger, client, file = Ledger(LEDGER), Client(), submissions / f"{name or experiment}.csv.gz"
    if not file.is_file():
        raise BuildError(f"{file}: not there; `launch.py push submit` makes it")
    row = describe(ledger, job_name("submit", experiment, name), experiment, runs)
    message = f"{experiment}, folds {row['folds']}, {row['views']}, CV {row['cv']}, commit {row['commit'][:7]}"
    digest, noted = digest_of(file), ledger.content["submissions"]
    if noted.get(digest) == "pushing" and message in client.submitted():
        noted[digest] = "submitted"
    elif noted.get(digest) == "submitted" and not again:
        raise BuildError(f"{file}: was submitted before; --again does it once more")
    else:
        noted[digest] = "pushing"
        ledger.save()
        client.submit(file, message)
        noted[digest] = "submitted"
    ledger.save()
    note(file, f"launch.py push submit --experiment {experiment}", runs, submissions / "README.md")
    print(f"submitted: {message}")


@app.command()
def plan(
    experiment: ExperimentOption, folds: FoldsOption = "0-4", overrides: SetOption = (),
    shards: Annotated[int, typer.Option(min=1)] = 4,
) -> None:  # fmt: skip
    """Sessions, hours and quota, before anything is sent."""
    hours = computed_hours(experiment, parse_folds(folds), list(overrides))
    total = 0.0
    for first in range(0, len(hours), GPUS):
        some = list(hours)[first : first + GPUS]
        longest = max(hours[fold] for fold in some)
        total += longest
        sessions = max(1, math.ceil(longest / SESSION))
        print(f"train folds {' '.join(map(str, some))}: {longest:.2f} h, {sessions} session(s) of two T4")
    print(f"submit: {shards} session(s) of two T4, then one without GPU; make_submission.py --estimate says how long")
    print(f"training {total:.1f} of {QUOTA} GPU hours a week, {AT_ONCE} sessions at once")
    print("hours are computed from multiplications at an assumed 12 TFLOP/s a T4; none was measured on Kaggle")


def collect_runs(ledger: Ledger, job: str, experiment: str, runs: Path) -> None:
    """Copies trained folds into runs/ and joins their out-of-fold tables."""
    folders = [output_of(entry) / "runs" / experiment for entry in ledger.last_rounds(job)]
    for folder in folders:
        for fold in sorted(folder.glob("fold*")):
            shutil.copytree(fold, runs / experiment / fold.name, dirs_exist_ok=True)
    command = [sys.executable, REPOSITORY / "src" / "merge_oof.py", *folders, "--output", runs / experiment]
    if subprocess.run(list(map(str, command))).returncode != 0:
        raise BuildError(f"{runs / experiment}: the out-of-fold tables cannot be joined")
    print(f"{runs / experiment}: {len(list((runs / experiment).glob('fold*')))} folds; now `launch.py push submit`")


def describe(ledger: Ledger, job: str, experiment: str, runs: Path) -> dict:
    """What a submission is: from the sessions that predicted it, and the experiment's out-of-fold table."""
    entries = ledger.last_rounds(job)
    try:
        told = read_status(output_of(entries[0])) if entries else None
        oof = json.loads((runs / experiment / "oof.json").read_text())
    except (OSError, ValueError) as error:
        raise BuildError(f"{runs / experiment}: {error}; `launch.py push train` puts it there") from None
    if not told:
        raise BuildError(f"{job}: no session of it was fetched; `launch.py push submit` does it")
    return {
        "folds": " ".join(oof["folds"]), "views": entries[0].settings["tta"],
        "cv": f"{oof['dice']:.5f} of {oof['photos']} photos", "commit": told["commit"],
    }  # fmt: skip


def note(file: Path, command: str, runs: Path, journal: Path) -> None:
    """Adds the CSV's row to the table of submissions."""
    script = [sys.executable, REPOSITORY / "src" / "record_submission.py", file, "--command", command]
    options = ["--runs", runs, "--journal", journal]
    if subprocess.run(list(map(str, [*script, *options]))).returncode != 0:
        raise BuildError(
            f"{journal}: {file.name} was submitted, but has no row; src/record_submission.py {file} writes it"
        )


def computed_hours(experiment: str, folds: list[int], overrides: list[str]) -> dict[int, float]:
    """Hours of each fold on a T4, as src/train.py computes them."""
    encoder_of(experiment, overrides)  # says which experiments there are
    settings = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, REPOSITORY / "src" / "train.py", experiment, "--dry-run", "--no-timing", *settings]
    chosen = ["--fold", ",".join(map(str, folds))]
    told = subprocess.run([*map(str, command), *chosen], capture_output=True, text=True)
    if told.returncode != 0:
        raise BuildError(f"{experiment}: {told.stderr.strip().splitlines()[-1]}")
    found = re.findall(r"fold (\d+) on a T4: ([\d.]+) hours", told.stdout)
    return {int(fold): float(hours) for fold, hours in found}


def job_name(kind: str, experiment: str, name: str | None) -> str:
    return f"{kind} {name or experiment}"


def copy_whole(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


if __name__ == "__main__":
    run(app)
