"""From a clone to the leaderboard on Kaggle's GPUs: `launch.py plan|weights|push|status|wait|fetch|submit`.

Kaggle's own client talks to Kaggle (`pip install -r kernels/requirements.txt`). `kernels/build/launch.json` holds what
was pushed: any command may be interrupted and given again, and nothing is pushed twice.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated

import leaderboard
import outputs
import typer
from build import (
    DirtyOption,
    FoldOption,
    HoursOption,
    InternetOption,
    LabelsOption,
    OwnerOption,
    TogetherOption,
)
from client import Client
from estimates import Estimate, verdict
from ledger import Entry, Ledger
from logs import LogStreams
from outputs import fetch_output, output_of
from packing import ACCELERATOR, BUILD, REPOSITORY, slugify
from runtime import digest_of
from sessions import AT_ONCE, Driver, drive, refresh
from settings import encoder_of, parse_folds, submit_settings, train_settings, view_count
from weights import make_dataset

from carvana.command import (
    FOLDS,
    RUNS,
    BudgetOption,
    CarsOption,
    FoldsOption,
    NetworksOption,
    OverridesOption,
    RunsOption,
    ThresholdOption,
    TtaOption,
    run,
)
from carvana.errors import InputError
from carvana.log import alone_in

LEDGER, SUBMISSIONS = BUILD / "launch.json", REPOSITORY / "submissions"
GPUS = 2  # of a session: a fold each
SELFTEST = BUILD / "selftest.json"
BASES = {  # what `plan` has hours from
    "budgeted": "budgeted: a fold trains as many epochs as fit into its time",
    "measured": f"measured: photos a second in {SELFTEST}",
    "computed": "computed: from multiplications at an assumed 12 TFLOP/s of a T4; `push selftest` measures it",
}
SESSION = 11  # hours


def alone(command: Callable) -> Callable:
    """Lets one such command work at a time: each writes the whole ledger."""

    @wraps(command)
    def locked(*arguments: object, **options: object) -> None:
        with alone_in(LEDGER.parent):
            command(*arguments, **options)

    return locked


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
push = typer.Typer(no_args_is_help=True)
app.add_typer(push, name="push", help="Train folds, predict the test set, test a GPU: push, wait and fetch, till done.")

ExperimentOption = Annotated[str, typer.Option("--experiment", help="Name of a file in src/experiments.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Another name, for a second attempt.")]
PollOption = Annotated[float, typer.Option("--poll", min=0, help="Seconds between two questions to Kaggle.")]
RetryOption = Annotated[bool, typer.Option("--retry", help="Push again what has failed, with what it left.")]
LogsOption = Annotated[bool, typer.Option("--logs/--no-logs", help="Print the logs of sessions that run.")]
NoRunOption = Annotated[bool, typer.Option("--no-run", help="Save the kernels on Kaggle without running them.")]
AcceleratorOption = Annotated[str, typer.Option("--accelerator", help="Kaggle's name of the machine.")]
SubmissionsOption = Annotated[Path, typer.Option("--submissions", help="Folder of the CSVs and their journal.")]


@app.command()
def weights(
    encoder: Annotated[str, typer.Argument(help="Name of a timm encoder, such as resnet34.")], owner: OwnerOption,
    weights: Annotated[str | None, typer.Option(help="File, folder or package:NAME; by default timm's hub.")] = None,
) -> None:  # fmt: skip
    """Uploads an encoder's ImageNet weights as a private dataset, once: kernels have no internet."""
    folder, dataset = make_dataset(encoder, owner, weights, BUILD)
    try:
        Client().create_dataset(folder)
    except InputError as error:
        if "already in use" not in str(error):
            raise
        print(f"{dataset}: exists already")
        return
    print(f"{dataset}: created; wait some minutes before the first push")


@push.command("train")
@alone
def push_train(
    experiment: ExperimentOption, owner: OwnerOption, folds: FoldOption = "all", overrides: OverridesOption = (),
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, internet: InternetOption = False, cars: CarsOption = None,
    folds_file: FoldsOption = FOLDS, dirty: DirtyOption = False, name: NameOption = None, poll: PollOption = 60,
    retry: RetryOption = False, logs: LogsOption = True, no_run: NoRunOption = False,
    accelerator: AcceleratorOption = ACCELERATOR, runs: RunsOption = RUNS, budget: BudgetOption = None,
    together: TogetherOption = False,
    labels_of: Annotated[str | None, typer.Option(help="Name of a `push submit --labels`: train on these too.")] = None,
) -> None:  # fmt: skip
    """Trains folds, two in a session; their checkpoints come into runs/."""
    ledger, job = Ledger(LEDGER), job_name("train", experiment, name)
    parts = [entry.settings["folds"] for entry in ledger.last_rounds(job)]
    free = [fold for fold in parse_folds(folds, folds_file) if not any(fold in part for part in parts)]
    entries = []
    for pair in [*parts, *pairs(free)]:  # what was planned is compared with the settings that are given now
        settings = train_settings(experiment, pair, list(overrides), tta, hours, together, budget, labels_of or False)
        settings |= digests_of(cars=cars, folds_file=folds_file if folds_file != FOLDS else None)
        sources = teaching_sessions(ledger, labels_of, pair) if labels_of and pair not in parts else []
        entries.append(Entry(job, "folds " + " ".join(map(str, pair)), settings, sources))
    for entry in entries:
        ledger.plan(entry)
    encoder = encoder_of(experiment, list(overrides))
    datasets = (f"{owner}/weights-{slugify(encoder)}",) if encoder and not internet else ()
    options = {"internet": internet, "datasets": datasets, "cars": cars, "folds_file": folds_file}
    options["accelerator"] = accelerator
    if drive(ledger, job, Driver(owner, "train", options, dirty, poll, retry, logs, not no_run)):
        outputs.collect_runs(ledger, job, experiment, runs / (name or ""))
        alone = " --fold none --threshold 0.5" if folds == "none" else ""
        options = f"{options_of(experiment, name)} --owner {owner} --shards 4{alone}"
        print(f"now `python kernels/launch.py push submit {options}`")


@push.command("submit")
@alone
def push_submit(
    experiment: ExperimentOption, owner: OwnerOption,
    shards: Annotated[int, typer.Option(min=1, help="Sessions that share the 100,064 photos.")] = 1,
    tta: TtaOption = "hflip", hours: HoursOption = 11.5, cars: CarsOption = None, dirty: DirtyOption = False,
    threshold: ThresholdOption = None, name: NameOption = None, poll: PollOption = 60, retry: RetryOption = False,
    logs: LogsOption = True, no_run: NoRunOption = False, accelerator: AcceleratorOption = ACCELERATOR,
    submissions: SubmissionsOption = SUBMISSIONS, fold: NetworksOption = None, labels: LabelsOption = None,
) -> None:  # fmt: skip
    """Predicts the test set with the folds of `push train`; the checked CSV comes into submissions/.

    Under a name that has no training, with those of the experiment.
    """
    ledger, job = Ledger(LEDGER), job_name("submit", experiment, name)
    sources = trained_networks(ledger, experiment, name, fold, threshold)
    for entry in ledger.of(job):
        if not entry.part.endswith(f" of {shards}"):
            raise InputError(f"{entry.name}: was begun so; give --shards {entry.part.rpartition(' ')[2]}")
        if entry.round == 1 and entry.sources != sources:
            raise InputError(f"{entry.name}: folds were trained since it was begun; give another --name")
    for number in range(1, shards + 1):
        settings = submit_settings([experiment], (number, shards), tta, threshold, hours, fold, labels)
        settings |= digests_of(cars=cars)
        ledger.plan(Entry(job, f"shard {number} of {shards}", settings, sources))
    options = {"cars": cars, "accelerator": accelerator}
    driver = Driver(owner, "submit", options, dirty, poll, retry, logs, not no_run)
    if not drive(ledger, job, driver):
        return
    predicted = ledger.last_rounds(job)
    if shards > 1:
        job = job_name("merge", experiment, name)
        ledger.plan(Entry(job, f"{shards} shards", {"hours": 1.0}, [entry.kernel for entry in predicted]))
        drive(ledger, job, replace(driver, kind="merge", options={"cars": cars, "gpu": False}))
    target = submissions / f"{name or experiment}.csv.gz"
    outputs.collect_submission(output_of(ledger.last_rounds(job)[0]), target)
    following = f"now `python kernels/launch.py submit {options_of(experiment, name)}`"
    print(f"{target}: whole and checked; {'not all photos, a trial' if cars else following}")


@push.command("selftest")
@alone
def push_selftest(
    owner: OwnerOption, dirty: DirtyOption = False, name: NameOption = None, poll: PollOption = 60,
    retry: RetryOption = False, logs: LogsOption = True, no_run: NoRunOption = False,
    accelerator: AcceleratorOption = ACCELERATOR,
) -> None:  # fmt: skip
    """Runs the GPU tests on Kaggle and measures photos a second of the experiments for GPUs, for `plan`."""
    ledger, job = Ledger(LEDGER), job_name("selftest", "gpu", name)
    ledger.plan(Entry(job, "rates", {"minutes": 5}, []))
    driver = Driver(owner, "selftest", {"accelerator": accelerator}, dirty, poll, retry, logs, not no_run)
    try:
        drive(ledger, job, driver)
    finally:  # rates are measured even where a test fails
        (entry,) = ledger.last_rounds(job)
        report = output_of(entry) / SELFTEST.name
        if entry.state in ("done", "failed") and report.exists():
            outputs.collect_file(report, SELFTEST)
            print(f"{SELFTEST}: `launch.py plan` uses it from now on")


@app.command()
def status() -> None:
    """Lists what was pushed, with its status on Kaggle."""
    ledger, client = Ledger(LEDGER), Client()
    for entry in ledger.entries:
        on_kaggle = client.status(entry.kernel).lower() if entry.state in ("pushing", "running") else ""
        print(f"{entry.name}: {entry.state} {on_kaggle} {entry.kernel}".rstrip())
        for fault in entry.faults:
            print(f"  {fault}")
    if not ledger.entries:
        print("nothing was pushed yet")


@app.command()
@alone
def wait(poll: PollOption = 60, logs: LogsOption = True) -> None:
    """Waits until no pushed session runs any more; pushes nothing."""
    ledger, client = Ledger(LEDGER), Client()
    with closing(LogStreams(logs)) as streams:
        while refresh(ledger, client):
            streams.follow(ledger.entries)
            time.sleep(poll)
    status()


@app.command()
@alone
def fetch() -> None:
    """Downloads the output of every session that has ended and was not fetched yet."""
    ledger, client = Ledger(LEDGER), Client()
    refresh(ledger, client)
    for entry in ledger.entries:
        if entry.state == "complete":
            fetch_output(entry, ledger, client)
        place = f", in {output_of(entry)}" if entry.state in ("done", "failed") else ""
        print(f"{entry.name}: {entry.state}{place}")


@app.command()
@alone
def submit(
    experiment: ExperimentOption, name: NameOption = None, runs: RunsOption = RUNS,
    submissions: SubmissionsOption = SUBMISSIONS,
    again: Annotated[bool, typer.Option("--again", help="Upload a file that was uploaded before.")] = False,
    poll: PollOption = 60,
) -> None:  # fmt: skip
    """Uploads the CSV with experiment, CV and commit, waits for its scores, records them in submissions/log.jsonl."""
    ledger, client, file = Ledger(LEDGER), Client(), submissions / f"{name or experiment}.csv.gz"
    journal, job = submissions / "log.jsonl", job_name("submit", experiment, name)
    if not file.is_file():
        raise InputError(f"{file}: does not exist; `launch.py push submit {options_of(experiment, name)}` makes it")
    if name and job_name("train", experiment, name) in {entry.job for entry in ledger.training_of(job)}:
        runs /= name  # the networks are else those of the experiment
    if not ledger.of(job):
        raise InputError(f"{file}: not made by `launch.py push submit`; submissions/README.md says how to upload it")
    if any("cars" in entry.settings for entry in ledger.of(job)):
        raise InputError(f"{file}: not of all photos, but of --cars; give `push submit` without it and another --name")
    digest, states = digest_of(file), ledger.content["submissions"]
    message = leaderboard.submission_message(file, runs, digest)
    if states.get(digest) in ("scored", "refused") and not again:
        raise InputError(f"{file}: was submitted before; --again submits it once more")
    if states.get(digest) != "submitted":
        leaderboard.upload(file, message, digest, ledger, client)
        command = f"launch.py push submit {options_of(experiment, name)}"
        leaderboard.record_submission(file, command, runs, journal)
        states[digest] = "submitted"
        ledger.save()
        print(f"submitted: {message}; waiting for its scores: if interrupted, give the command again", flush=True)
    row = leaderboard.wait_for_score(client, digest, poll)
    if row["status"].upper().endswith("ERROR"):
        states[digest] = "refused"
        ledger.save()
        raise InputError(f"{file}: Kaggle could not score it; the competition's page says why")
    leaderboard.record_scores(file, row["publicScore"], row["privateScore"], journal)
    states[digest] = "scored"
    ledger.save()


@app.command()
def plan(
    experiment: ExperimentOption, folds: FoldOption = "all", overrides: OverridesOption = (),
    shards: Annotated[int, typer.Option(min=1, help="Sessions that share the 100,064 photos.")] = 4,
    budget: BudgetOption = None, tta: TtaOption = "hflip",
    student: Annotated[str | None, typer.Option(help="Experiment of a network that learns from their labels.")] = None,
) -> None:  # fmt: skip
    """Prints sessions, hours and quota; sends nothing."""
    numbers, views = parse_folds(folds), view_count(tta)
    networks = max(len(numbers) - ("none" in numbers), 1)
    estimate = Estimate(SELFTEST, experiment, numbers, list(overrides), budget)
    steps = [(f"train folds {' '.join(map(str, pair))}", *estimate.training(pair), 1) for pair in pairs(numbers)]
    made, predicted = "submit and label" if student else "submit", estimate.prediction(networks * views, GPUS)
    steps.append((f"{made} by {networks} network(s), {views} view(s)", *predicted, shards))
    if student:  # of all cars, as the labels are by networks that have seen them all
        settings = [*overrides, "data.pseudo=labels.csv.gz"]
        estimate = Estimate(SELFTEST, student, ["none"], settings, budget)
        steps.append((f"train student {student} on both GPUs", *estimate.training(["none"], GPUS), 1))
        steps.append((f"submit student by 1 network(s), {views} view(s)", *estimate.prediction(views, GPUS), 1))
    for name, hours, how, parts in steps:
        joined = ", then one without GPU" if parts > 1 else ""
        sessions = max(parts, math.ceil(hours / SESSION))
        print(f"{name}: {hours:.1f} h {how}, {sessions} session(s) of two T4{joined}")
    total = sum(hours for _, hours, *_ in steps)
    line, left, weekly = Client(hours=0).quota()
    print(f"in all {total:.1f} GPU hours, {AT_ONCE} sessions at once; {line}{verdict(total, left, weekly)}")
    print(*(BASES[how] for how in dict.fromkeys(how for _, _, how, _ in steps)), sep="\n")


def pairs(folds: list[int]) -> list[list[int]]:
    """The folds of each session, one for each of its GPUs."""
    return [folds[first : first + GPUS] for first in range(0, len(folds), GPUS)]


def trained_networks(
    ledger: Ledger, experiment: str, name: str | None, fold: str | None, threshold: float | None
) -> list[str]:
    """Kernels whose networks predict: those of the name, or of the experiment if nothing was trained under the name.

    Raises InputError if they are not all trained, if there is no threshold, or if `fold` names one that is not there.
    """
    trained, training = ledger.last_rounds(job_name("train", experiment, name)), options_of(experiment, name)
    if name and not trained:
        print(f"{name}: nothing was trained under this name; it predicts with the networks of {experiment}")
        trained, training = ledger.last_rounds(job_name("train", experiment, None)), options_of(experiment, None)
    if not trained or any(entry.state != "done" for entry in trained):
        raise InputError(f"{experiment}: not all of its folds are trained; give `push train {training}` until they are")
    if None in (fold, threshold) and all(entry.settings["folds"] == ["none"] for entry in trained):
        alone = "only a network of all cars was trained, and no fold to choose a threshold"
        raise InputError(f"{experiment}: {alone}; give --fold none --threshold 0.5")
    networks = {str(number) for entry in trained for number in entry.settings["folds"]} | {"all"}
    if fold and (missing := {part.strip() for part in fold.split(",")} - networks):
        raise InputError(f"--fold {fold}: fold {min(missing)} is not trained; `push train {training} --fold` does it")
    return [entry.kernel for entry in trained]


def teaching_sessions(ledger: Ledger, name: str, folds: list[int | str]) -> list[str]:
    """Kernels whose output is learnt from: that with the labels of a `push submit --labels`.

    If these are soft, a network of all cars also learns from what trained the folds: it has out-of-fold soft masks.
    Raises InputError if the labels are not made yet, or if their networks have seen cars that a fold is validated on.
    """
    shards = ledger.last_rounds(job_name("submit", name, None))
    last = shards if len(shards) == 1 else ledger.last_rounds(job_name("merge", name, None))
    if not last or last[0].state != "done" or not shards[0].settings["labels"]:
        raise InputError(f"--labels-of {name}: no `push submit --labels` under this name has ended; give it first")
    trained = [entry for entry in ledger.training_of(shards[0].job) if entry.settings["folds"] != ["none"]]
    numbers = [str(fold) for entry in trained for fold in entry.settings["folds"] if fold != "none"]
    networks = [shards[0].settings["fold"]] if shards[0].settings["fold"] else numbers
    allowed = {"none", *networks} if len(networks) == 1 and networks[0].isdecimal() else {"none"}
    if leaking := {*map(str, folds)} - allowed:
        reason = f"its networks have seen the cars that fold {min(leaking)} is validated on"
        raise InputError(f"--labels-of {name}: {reason}; give --fold {' or '.join(sorted(allowed, reverse=True))}")
    soft = shards[0].settings["labels"] == "soft" and folds == ["none"]
    return [last[0].kernel, *(entry.kernel for entry in trained if soft)]


def digests_of(**files: Path | None) -> dict[str, str]:
    """Of the files that are given: another content makes another job."""
    return {name: digest_of(file) for name, file in files.items() if file}


def options_of(experiment: str, name: str | None) -> str:
    """Those by which another command finds the same job."""
    return f"--experiment {experiment}" + (f" --name {name}" if name else "")


def job_name(kind: str, experiment: str, name: str | None) -> str:
    return f"{kind} {name or experiment}"


if __name__ == "__main__":
    run(app)
