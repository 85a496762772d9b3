"""launch.py over Kaggle's real client, to a server on this machine (kaggle_stub.py) that runs what is pushed to it.

The packed kernels run as on Kaggle (emulated.py), one of them as a process that starts a packed script as a process.
"""

import contextlib
import io
import json
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import client
import emulated
import estimates
import launch
import leaderboard
import logs
import outputs
import packing
import pandas as pd
import pytest
import runtime
import sessions
import torch
from client import Client
from conftest import Result, full_disk, run_script
from emulated import Kaggle, pack_once, run_kaggle, stand_in
from kaggle_stub import LOG, KaggleStub
from ledger import Entry, Ledger
from logs import LogStreams
from packing import Kernel, build
from safetensors.torch import load_file, save_file
from settings import encoder_of, submit_settings, train_settings

from carvana.data.images import car_of
from carvana.data.labels import read_labels
from carvana.data.soft import read_soft
from carvana.errors import InputError
from carvana.log import alone_in, write_json
from carvana.models.checkpoint import read_facts
from carvana.models.encoder import create_encoder
from carvana.submission.csv import read_submission
from carvana.submission.journal import read_journal
from carvana.submission.manifest import manifest_path, read_manifest

SMALL = ["model.encoder=test_efficientnet", "data.size=[64,96]", "data.num_workers=0", "train.epochs=2", "optim.lr=.01"]
ASKED = ("SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput")
WEIGHTS = "runs/demo/fold0/best.safetensors"


@contextlib.contextmanager
def connected(root: Path, execute):
    """Kaggle's server; it works while launch.py, whose files are in `root`, sleeps. A session trains one fold."""
    server = KaggleStub(execute, root / "server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setattr(launch, "LEDGER", root / "launch.json")
        patch.setattr(launch, "SELFTEST", root / "build" / "selftest.json")
        patch.setattr(launch, "GPUS", 1)
        for module in (launch, sessions, outputs):
            patch.setattr(module, "BUILD", root / "build")
        for module in (launch, sessions, leaderboard):
            patch.setattr(module, "time", SimpleNamespace(sleep=server.work, time_ns=time.time_ns))
        patch.setattr(client, "time", SimpleNamespace(sleep=server.pass_time, monotonic=lambda: server.now))
        old = SimpleNamespace(stdout=[], poll=lambda: logs.TOO_OLD, terminate=lambda: None)  # a client without --follow
        patch.setattr(logs, "subprocess", SimpleNamespace(Popen=lambda *_, **__: old, PIPE=None, DEVNULL=None))
        patch.setattr(packing, "pack", pack_once)
        patch.setattr(client, "subprocess", stand_in(run_kaggle))
        patch.setattr(outputs, "subprocess", stand_in(lambda command: run_script(*command[1:], check=False)))
        yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="module")
def mounts(demo, tmp_path_factory) -> dict[str, Path]:
    """The competition's files as Kaggle mounts them: zipped, each with a top folder. A dataset of weights."""
    data, weights = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("weights")
    for part in ("train", "train_masks", "test", "sample_submission.csv"):
        shutil.make_archive(data / part, "zip", demo / "input", part)
    torch.manual_seed(0)
    encoder = create_encoder("test_efficientnet", pretrained=False)
    save_file(encoder.state_dict(), weights / "test_efficientnet.safetensors")
    return {"competitions/carvana-image-masking-challenge": data, "alice/weights-test-efficientnet": weights}


def without_sources(text: str) -> str:
    """A kernel as it is built by hand: it does not know what is to be attached."""
    return re.sub(r"'sources': \[.*?\]", "'sources': []", text)


def push_train(root: Path, **changes) -> None:
    options = {"folds": "0", "overrides": SMALL, "tta": "none", "dirty": True, "poll": 0, "runs": root / "runs"}
    launch.push_train("demo", "alice", **options | changes)


@pytest.fixture(scope="module")
def season(demo, mounts, tmp_path_factory) -> SimpleNamespace:
    """From training, on a car a fold, to the leaderboard, in eight sessions, never more than two at once.

    Fold 0; fold 1, out of time; fold 1 continued; shards 1 and 2; shard 3, out of time; shard 3 continued; all joined.
    """
    root, machines, clock = tmp_path_factory.mktemp("season"), [], time.monotonic
    cars, folds_file = root / "cars.txt", demo / "folds.csv"
    cars.write_text("\n".join(pd.read_csv(folds_file).groupby("fold")["car"].first()))

    def execute(request: dict, working: Path) -> bool:
        earlier = {f"notebooks/{name}": server.output_of(name[6:]) for name in request.get("kernelDataSources", [])}
        machines.append(kaggle := Kaggle(working.parents[1], mounts | earlier, request["text"]))
        with pytest.MonkeyPatch.context() as patch:
            if len(machines) in (2, 6):  # on its clock an epoch, or a block of photos, takes a day
                days = lambda: len([*working.rglob("epoch-*"), *working.rglob("block-*")])
                patch.setattr(time, "monotonic", lambda: clock() + 86400 * days())
            return kaggle.run().returncode == 0

    files = {"submissions": root / "submissions"}
    with connected(root, execute) as server:
        for _ in range(2):  # given again, nothing is pushed twice
            push_train(root, folds="0,1", cars=cars, folds_file=folds_file)
        for _ in range(2):
            launch.push_submit("demo", "alice", shards=3, tta="none", dirty=True, poll=0, **files)
        files["runs"], server.submissions_left = root / "runs", 0
        with pytest.raises(InputError, match="none of today's submissions is left"):
            launch.submit("demo", **files)
        server.submissions_left, server.faults = 1, {"CreateSubmission": ["lost", "cut"]}  # the second one arrives
        with (
            mock.patch.object(leaderboard.time, "sleep", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            launch.submit("demo", **files)
        launch.submit("demo", **files)  # its scores
        with pytest.raises(InputError, match="was submitted before"):
            launch.submit("demo", **files)
        launch.submit("demo", again=True, **files)
    return SimpleNamespace(root=root, server=server, machines=machines, requests=[*server.pushed.values()])


def test_sessions_are_pushed_once_and_continue_one_another(season):
    assert [kaggle.status["kernel"] for kaggle in season.machines] == ["train"] * 3 + ["submit"] * 4 + ["merge"]
    assert [number for number, kaggle in enumerate(season.machines, 1) if not kaggle.status["finished"]] == [2, 6]
    assert [kaggle.status["faults"] for kaggle in season.machines] == [[]] * 8
    first, stopped, continued = (request["slug"] for request in season.requests[:3])
    sources = [request.get("kernelDataSources", []) for request in season.requests[:5]]
    assert sources == [[], [], [stopped], [first, continued], [first, continued]]
    assert [season.requests[index]["enableGpu"] for index in (0, 7)] == [True, False]
    assert season.requests[0]["datasetDataSources"] == ["alice/weights-test-efficientnet"]
    assert "secret-key" not in (season.root / "launch.json").read_text()


def test_training_is_continued_to_the_same_end_and_evaluated(season):
    first, stopped, continued = season.machines[:3]
    assert [kaggle.status["folds"] for kaggle in (first, stopped, continued)] == [{"0": 0}, {"1": 3}, {"1": 0}]
    logs = [kaggle.working / "runs" / "demo" / "fold1" / "log.jsonl" for kaggle in (stopped, continued)]
    before, records = (log.read_text().splitlines() for log in logs)
    assert (before, [json.loads(record)["epoch"] for record in records]) == (records[:1], [1, 2])
    assert {WEIGHTS, "runs/demo/fold0/log.jsonl", "runs/demo/oof.json", "worst.jpg"} <= first.status["files"].keys()
    assert all(f"[{label}] " in first.log for label in ("fold 0", "evaluate.py", "draw.py"))


def test_the_submission_is_what_the_scripts_predict_here_with_the_fetched_folds(season, demo, tmp_path):
    file, local = season.root / "submissions" / "demo.csv.gz", tmp_path / "local.csv"
    options = ["--input", demo / "input", "--runs", season.root / "runs", "--tta", "none"]
    run_script("make_submission.py", "demo", *options, "--output", local)
    assert list(read_submission(file)) == list(read_submission(local))
    oof = json.loads((season.root / "runs" / "demo" / "oof.json").read_text())
    manifest, merged = read_manifest(manifest_path(file)), season.machines[7]
    assert (oof["photos"], oof["folds_missing"], oof["threshold"]) == (32, [], manifest.threshold)
    assert list(manifest.checkpoints["demo"]) == ["0", "1"]
    assert "1 of 2 blocks are there already" in season.machines[6].log
    assert ("overlays.jpg" in merged.status["files"], "photos, 3 parts, checked" in merged.log) == (True, True)
    assert (season.server.uploads, len(season.server.submissions)) == ([file.read_bytes()] * 3, 2)
    score = r"CV 0\.\d{5} \(0\.\d{5} to 0\.\d{5}\) of 32 photos"
    message = rf"demo, folds 0 1, identity, {score}, commit [0-9a-f]{{7}}, file [0-9a-f]{{7}}"
    assert re.fullmatch(message, season.server.submissions[0]["description"])
    record, again = read_journal(season.root / "submissions" / "log.jsonl")
    assert (record["public"], record["private"], again) == (0.9971, 0.9968, record)
    assert (record["file"], record["threshold"], record["cv"][0]["photos"]) == (file.name, oof["threshold"], 32)
    assert record["command"] == "launch.py push submit --experiment demo"


def test_all_cars_are_trained_beside_a_fold_and_their_network_predicts_alone(demo, mounts, tmp_path, monkeypatch):
    cars, folds_file = tmp_path / "cars.txt", demo / "folds.csv"
    cars.write_text("\n".join(pd.read_csv(folds_file).groupby("fold")["car"].first()))

    def run(kind: str, settings: dict, mounts: dict[str, Path]) -> Kaggle:
        only = {"cars": cars, "folds_file": folds_file} if kind == "train" else {}
        kernel = Kernel(kind, f"carvana {kind} cars", "alice", settings, True, **only)
        folder = build(kernel, tmp_path / "built", dirty=True)
        kaggle = Kaggle(tmp_path / kind, mounts, (folder / f"{folder.name}.py").read_text())
        assert kaggle.run().returncode == 0, kaggle.log
        return kaggle

    settings = train_settings("demo", [0, "none"], [*SMALL, "train.epochs=1"], "none", 1, False)
    trained = run("train", settings, mounts)
    assert trained.status["folds"] == {"0": 0, "none": 0}
    assert "fold none: training on 2 cars, no validation" in trained.log
    settings = submit_settings(["demo"], (1, 1), "none", None, 1, "none", "hard")
    predicted = run("submit", settings, mounts | {"notebooks/alice/trained": trained.working})
    manifest = read_manifest(predicted.working / "submission.csv.gz.json")
    oof = json.loads((trained.working / "runs" / "demo" / "oof.json").read_text())
    assert ([*manifest.checkpoints["demo"]], manifest.threshold) == (["none"], oof["threshold"])
    labels, rows = predicted.working / "labels.csv.gz", read_submission(predicted.working / "submission.csv.gz")
    assert [label[:2] for label in read_labels(labels)] == list(rows)


def test_a_student_does_not_continue_its_teachers_network_of_all_cars(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    teacher, student = (tmp_path / "input" / name / "runs" / "demo" for name in ("teacher", "student"))
    for folder, epochs in ((teacher, 9), (student, 1)):
        (folder / "none").mkdir(parents=True)
        (folder / "none" / "log.jsonl").write_text("{}\n" * epochs)
    (teacher / "oof_soft.zip").touch()
    session = runtime.Session({"kernel": "train"}, tmp_path / "code", "")
    assert session.find_folds(["demo"]) == {("demo", "none"): teacher / "none"}
    teachers = [file.parent for file in session.find_soft()]
    assert session.find_folds(["demo"], teachers) == {("demo", "none"): student / "none"}


def test_of_states_with_as_many_epochs_the_finished_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    folds = {name: tmp_path / "input" / name / "runs" / "demo" / "fold0" for name in "abc"}
    for name, fold in folds.items():
        write_json(fold / "end.json", {"finished": name == "b"})
        (fold / "log.jsonl").write_text("{}\n")
    session = runtime.Session({"kernel": "train"}, tmp_path / "code", "")
    assert session.find_folds(["demo"]) == {("demo", "fold0"): folds["b"]}


def test_a_student_of_the_ensemble_is_trained_on_both_gpus_and_submitted(season, demo, mounts, tmp_path, capsys):
    """Shards 1 and 2, with soft masks; both joined; the student, which sees those of the folds too; its submission."""
    machines, cars = [], {"cars": season.root / "cars.txt", "folds_file": demo / "folds.csv"}

    def execute(request: dict, working: Path) -> bool:
        earlier = {}
        for name in request.get("kernelDataSources", []):
            folders = (known.output_of(name[6:]) for known in (season.server, server))
            earlier[f"notebooks/{name}"] = next(folder for folder in folders if folder.exists())
        machines.append(kaggle := Kaggle(working.parents[1], mounts | earlier, request["text"]))
        return kaggle.run(gpus=2 if "'kernel': 'train'" in request["text"] else 0).returncode == 0

    with connected(tmp_path, execute) as server:
        shutil.copy(season.root / "launch.json", tmp_path)
        ledger = Ledger(tmp_path / "launch.json")
        ledger.entries = ledger.of("train demo")
        ledger.save()
        shared = {"dirty": True, "poll": 0, "tta": "none", "submissions": tmp_path / "submissions"}
        student = {"name": "student", "folds": "none", "together": True, "labels_of": "labels"} | cars
        student["overrides"] = [*SMALL, "train.epochs=1"]
        with pytest.raises(InputError, match="--labels-of labels: no `push submit --labels` under this name has ended"):
            push_train(tmp_path, **student)
        launch.push_submit("demo", "alice", shards=2, name="labels", labels="soft", **shared)  # by the folds of `demo`
        with pytest.raises(InputError, match=r"the cars that fold 0 is validated on; give --fold none$"):
            push_train(tmp_path, **student | {"folds": "none,0"})
        push_train(tmp_path, **student)
        with pytest.raises(InputError, match="and no fold to choose a threshold; give --fold none --thr"):
            launch.push_submit("demo", "alice", name="student", **shared)
        launch.push_submit("demo", "alice", name="student", fold="none", threshold=0.5, **shared)
        for name, runs in (("labels", season.root / "runs"), ("student", tmp_path / "runs")):
            launch.submit("demo", name=name, runs=runs, submissions=tmp_path / "submissions", again=True)
    assert [kaggle.status["kernel"] for kaggle in machines] == ["submit", "submit", "merge", "train", "submit"]
    assert [kaggle.status["faults"] for kaggle in machines] == [[]] * 5
    folds = [entry.kernel for entry in ledger.last_rounds("train demo")]
    merged, trained = [*server.pushed][2:4]
    sources = [request.get("kernelDataSources", []) for request in server.pushed.values()]
    assert sources[3:] == [[f"alice/{merged}", *folds], [f"alice/{trained}"]]
    whole = (season.root / "submissions" / "demo.csv.gz", tmp_path / "submissions" / "labels.csv.gz")
    assert list(read_submission(whole[0])) == list(read_submission(whole[1]))  # with labels as without
    labelled = [Path(name).stem for name, _ in read_soft(machines[2].working / "soft.zip")]
    assert labelled == [Path(img).stem for img, _ in read_submission(whole[1])]
    assert not [*(tmp_path / "build" / "output").rglob("*.zip*")]  # they stay on Kaggle
    folder = tmp_path / "runs" / "student" / "demo" / "none"
    (record,) = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    assert record["processes"] == 2
    assert "/soft.zip: probabilities of 16 photos" in machines[3].log
    assert machines[3].log.count("oof_soft.zip: out-of-fold probabilities of 16 photos") == len(folds) == 2
    assert {*map(car_of, labelled)} < {*read_facts(folder / "best.safetensors")["seen_cars"]}
    submission = manifest_path(tmp_path / "submissions" / "student.csv.gz")
    assert [*read_manifest(submission).checkpoints["demo"]] == ["none"]
    messages = (
        r"demo, fold none, identity, no CV, commit [0-9a-f]{7}, file [0-9a-f]{7}",
        r"demo, folds 0 1, identity, CV 0\.\d{5} .* of 32 .*",
    )
    assert all(map(re.fullmatch, messages, (row["description"] for row in server.submissions)))
    record, step = read_journal(tmp_path / "submissions" / "log.jsonl")[-1], "submit --experiment demo --name student"
    assert (record["public"], record["command"]) == (0.9971, f"launch.py push {step}")
    assert f"student.csv.gz: whole and checked; now `python kernels/launch.py {step}`" in capsys.readouterr().out
    alone = Kaggle(tmp_path / "alone", mounts, without_sources(server.pushed[trained]["text"]))
    assert (alone.run().returncode, "no soft.zip or labels.csv.gz: attach" in alone.status["faults"][0]) == (1, True)


@pytest.mark.parametrize("fold", ["1", None])
def test_labels_of_one_fold_are_for_that_fold_and_for_all_cars(tmp_path, fold):
    ledger = Ledger(tmp_path / "launch.json")
    ledger.entries = [
        Entry("train demo", "folds 1", {"folds": [1]}, [], "done", "alice/a"),
        Entry("submit demo", "shard 1 of 1", {"labels": "hard", "fold": fold}, ["alice/a"], "done", "alice/b"),
    ]
    assert launch.teaching_sessions(ledger, "demo", [1, "none"]) == ["alice/b"]
    with pytest.raises(InputError, match=r"the cars that fold 0 is validated on; give --fold none or 1$"):
        launch.teaching_sessions(ledger, "demo", [0, 1])


def test_a_session_on_all_cars_alone_is_collected_without_a_table(tmp_path, monkeypatch, capsys):
    joined = []
    monkeypatch.setattr(outputs, "output_of", lambda entry: tmp_path / entry.part)
    monkeypatch.setattr(outputs, "script_output", lambda _, *command: joined.append(command[2:-2]) or "")
    for name in ("a/runs/demo/fold0/x", "a/runs/demo/none/x", "a/runs/demo/oof.json", "b/runs/demo/none/x"):
        write_json(tmp_path / name, {})
    for parts, runs in (("b", tmp_path / "alone"), ("ab", tmp_path / "beside")):
        entries = lambda job, parts=parts: [Entry(job, part, {}, []) for part in parts]
        ledger = SimpleNamespace(last_rounds=entries, of=entries)
        outputs.collect_runs(ledger, "train demo", "demo", runs)
        assert (runs / "demo" / "none" / "x").exists()
    assert joined == [(tmp_path / "a" / "runs" / "demo",)]
    for part in "ab":
        write_json(tmp_path / part / "status.json", {"commit": part})
    assert "note: " not in capsys.readouterr().out
    outputs.collect_runs(ledger, "train demo", "demo", tmp_path / "again")
    assert "demo: trained by different code, commits a, b\n" in capsys.readouterr().out


def test_a_fetched_run_continues_the_one_that_lies_there_and_replaces_no_other(tmp_path):
    target, fetched = (tmp_path / name / "fold0" for name in ("runs", "output"))
    for folder, lines, state in ((target, "1\n", "epoch-0001"), (fetched, "1\n2\n", "epoch-0002")):
        (folder / "state" / state).mkdir(parents=True)
        (folder / "log.jsonl").write_text(lines)
    outputs.replace_run(target, fetched)
    assert [path.name for path in target.glob("state/*")] == ["epoch-0002"]
    (target / "log.jsonl").write_text("another\n")
    with pytest.raises(InputError, match=r"runs/fold0: holds another run than the fetched .*; move it away"):
        outputs.replace_run(target, fetched)
    assert (target / "log.jsonl").read_text() == "another\n"
    (target / "log.jsonl").unlink()
    (target / "best.safetensors").touch()  # somebody's checkpoint, without the log of its training
    with pytest.raises(InputError, match="holds another run"):
        outputs.replace_run(target, fetched)


def test_a_mounted_folder_is_copied_to_where_all_of_it_can_be_written(tmp_path):
    (tmp_path / "mount" / "state").mkdir(parents=True)
    (tmp_path / "mount" / "state" / "model").write_text("weights")
    for folder in (tmp_path / "mount" / "state", tmp_path / "mount"):
        folder.chmod(0o555)
    for _ in range(2):
        runtime.copy_folder(tmp_path / "mount", tmp_path / "copy")
    assert (tmp_path / "copy" / "state" / "model").read_text() == "weights"
    assert {path.stat().st_mode & 0o200 for path in (tmp_path / "copy").rglob("*")} == {0o200}


def test_one_command_at_a_time_writes_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "LEDGER", tmp_path / "launch.json")
    with alone_in(tmp_path):
        for command in (launch.wait, launch.fetch, lambda: launch.submit("demo"), lambda: push_train(tmp_path)):
            with pytest.raises(InputError, match="another command is at work there"):
                command()


@pytest.mark.parametrize(("changes", "message"), [
    ({"folds": "0,5"}, r"--fold 0,5: .*folds\.csv has no fold 5"), ({"tta": "vflip"}, "no view is named vflip"),
])  # fmt: skip
def test_a_slip_is_refused_before_hours_are_spent(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(launch, "LEDGER", tmp_path / "launch.json")
    with pytest.raises(InputError, match=message):
        launch.push_train("demo", "alice", **{"folds": "all"} | changes)
    assert not (tmp_path / "launch.json").exists()


@pytest.fixture
def server(season, tmp_path):
    """A server whose sessions leave what the first one left; `endings` is what differs in status.json, or None."""

    def execute(request: dict, working: Path) -> bool:
        ending = server.endings.pop(0) if server.endings else {}
        shutil.copytree(season.machines[0].working, working)
        (working / "status.json").write_text("" if ending is None else json.dumps(season.machines[0].status | ending))
        return ending is not None

    with connected(tmp_path, execute) as server:
        server.endings = []
        yield server


@pytest.mark.parametrize(
    ("faults", "endings", "message", "pushes", "pushed"),
    [
        ({method: [429] for method in ASKED}, [], "", 2, 1),
        ({method: ["lost"] for method in ASKED}, [], "", 2, 1),
        ({"SaveKernel": ["cut"]}, [], "", 1, 1),  # it had arrived
        ({method: [503, "500", "429"] for method in ASKED}, [], "", 4, 1),
        ({"SaveKernel": ["busy", "busy"]}, [], "", 3, 1),
        ({"SaveKernel": ["quota"]}, [], r"30.00 hours reached. 12.50 of .* 2026-10-03 00:00 UTC; give then: ", 2, 1),
        ({"GetAcceleratorQuotaStatistics": [401]}, [], "", 1, 1),
        ({"GET": [None, "cut"]}, [], "", 1, 1),
        ({"SaveKernel": ["refuse"]}, [], "not pushed: .*Your notebook was refused", 2, 1),
        ({"SaveKernel": [403]}, [], "accept the competition's rules", 2, 1),
        ({}, [{"faults": ["fold 0: train.py ended"]}], r"fold 0: train.py ended.*--retry", 2, 2),
        ({}, [None], "ended with ERROR, it left no status.json", 2, 2),
    ],
)
def test_faults_are_waited_for_or_reported(server, season, tmp_path, faults, endings, message, pushes, pushed):
    server.faults, server.endings = {method: [*faults[method]] for method in faults}, [*endings]
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        push_train(tmp_path)
    push_train(tmp_path, retry=True)
    sources = [request.get("kernelDataSources", []) for request in server.pushed.values()]
    assert sources == [[], *([f"alice/{slug}"] for slug in [*server.pushed][:-1])]  # of what has failed
    assert (server.calls.count("SaveKernel"), len(server.pushed)) == (pushes, pushed)
    assert (tmp_path / WEIGHTS).read_bytes() == (season.machines[0].working / WEIGHTS).read_bytes()


@pytest.mark.parametrize("broken", ["worst.jpg", "status.json"])
def test_what_does_not_arrive_whole_is_fetched_by_the_next_command(server, season, tmp_path, broken):
    folder = season.machines[0].working
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if ".zip" not in name]
    server.faults["GET"] = ["cut" if name == broken else None for name in names] * outputs.FETCHES
    with pytest.raises(InputError, match=f"^train demo, folds 0: {broken} does not arrive whole; give the command"):
        push_train(tmp_path)
    push_train(tmp_path)
    assert (server.calls.count("SaveKernel"), server.calls.count("ListKernelSessionOutput")) == (1, 4)


def test_what_has_another_content_or_is_of_some_cars_is_another_job(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "drive", lambda *_: False)  # plans only
    (tmp_path / "cars.txt").write_text("some\n")
    push_train(tmp_path, cars=tmp_path / "cars.txt")
    with pytest.raises(InputError, match="folds 0: was begun with other settings"):
        push_train(tmp_path)
    (tmp_path / "cars.txt").write_text("others\n")
    with pytest.raises(InputError, match="folds 0: was begun with other settings"):
        push_train(tmp_path, cars=tmp_path / "cars.txt")
    ledger = Ledger(tmp_path / "launch.json")
    ledger.entries[0].state = "done"
    ledger.save()
    launch.push_submit("demo", "alice", cars=tmp_path / "cars.txt")
    (tmp_path / "demo.csv.gz").touch()
    with pytest.raises(InputError, match=r"demo\.csv\.gz: not of all photos, but of --cars; give"):
        launch.submit("demo", submissions=tmp_path)
    (tmp_path / "own.csv.gz").touch()
    with pytest.raises(InputError, match=r"own\.csv\.gz: not made by `launch\.py push submit`"):
        launch.submit("demo", name="own", submissions=tmp_path)


def test_what_was_fetched_and_is_gone_is_fetched_again(season, tmp_path, monkeypatch):
    shutil.copy(season.root / "launch.json", tmp_path)
    ledger, asked = Ledger(tmp_path / "launch.json"), []
    monkeypatch.setattr(sessions, "BUILD", tmp_path)
    monkeypatch.setattr(outputs, "BUILD", tmp_path)
    fetch = lambda entry, *_: asked.append(entry) or setattr(entry, "state", "done")
    monkeypatch.setattr(sessions, "fetch_output", fetch)
    driver = sessions.Driver("alice", "train", {}, False, 0, False, False, True, client=None)
    assert sessions.drive(ledger, "train demo", driver)
    assert asked == ledger.last_rounds("train demo")


def test_an_upload_begun_again_is_told_from_earlier_ones_of_the_same_file(tmp_path):
    ledger, calls, rows = Ledger(tmp_path / "launch.json"), [], [{}]
    ledger.content["submissions"]["digest"] = "scored"

    def submit(*call) -> None:
        calls.append(call)
        if len(calls) == 1:
            raise KeyboardInterrupt

    client = SimpleNamespace(submissions_left=lambda: 3, submissions=lambda ending: rows, submit=submit)
    with pytest.raises(KeyboardInterrupt):
        leaderboard.upload("x.csv", "message", "digest", ledger, client)
    leaderboard.upload("x.csv", "message", "digest", Ledger(ledger.path), client)
    assert calls == [("x.csv", "message", "file digest", 1)] * 2


def test_a_fold_is_trained_once_and_shards_are_of_one_split(server, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GPUS", 2)
    monkeypatch.setattr(launch, "drive", lambda *_: False)  # plans only
    for folds in ("0", "1,2,3", "0,1,2,3,none"):
        push_train(tmp_path, folds=folds)
    ledger = Ledger(tmp_path / "launch.json")
    assert [entry.part for entry in ledger.entries] == ["folds 0", "folds 1 2", "folds 3", "folds none"]
    with pytest.raises(InputError, match="folds 0: was begun with other settings"):
        push_train(tmp_path, tta="hflip")
    with pytest.raises(InputError, match="demo: not all of its folds are trained; give `push train --experiment demo`"):
        launch.push_submit("demo", "alice", name="another")
    for entry in ledger.entries:
        entry.state = "done"
    ledger.save()
    launch.push_submit("demo", "alice", shards=2)
    with pytest.raises(InputError, match="submit demo, shard 1 of 2: was begun so; give --shards 2"):
        launch.push_submit("demo", "alice", shards=4)
    with pytest.raises(InputError, match="fold 4 is not trained; `push train --experiment demo --fold` does it"):
        launch.push_submit("demo", "alice", name="another", fold="4,none")
    push_train(tmp_path, folds="all,none")
    ledger = Ledger(tmp_path / "launch.json")
    assert [entry.part for entry in ledger.of("submit demo")] == ["shard 1 of 2", "shard 2 of 2"]
    ledger.last_rounds("train demo")[-1].state = "done"
    ledger.save()
    with pytest.raises(InputError, match="shard 1 of 2: folds were trained since it was begun; give another --name"):
        launch.push_submit("demo", "alice", shards=2)


def test_another_name_has_its_own_runs(server, tmp_path, capsys):
    push_train(tmp_path, name="second")
    following = "python kernels/launch.py push submit --experiment demo --name second --owner alice --shards 4"
    assert capsys.readouterr().out.endswith(f"now `{following}`\n")
    with pytest.raises(InputError, match=r"`launch.py push submit --experiment demo --name second` makes it"):
        launch.submit("demo", name="second", submissions=tmp_path)
    assert (tmp_path / "runs" / "second" / "demo" / "fold0" / "best.safetensors").is_file()
    assert json.loads((tmp_path / "runs" / "second" / "demo" / "oof.json").read_text())["experiment"] == "demo"
    assert not (tmp_path / "runs" / "demo").exists()


def test_a_session_that_runs_without_all_sources_is_followed(server, tmp_path, capsys):
    server.endings, server.invalid = [None], {"invalidDatasetSources": ["alice/weights-test-efficientnet"]}
    with pytest.raises(InputError, match="ended with ERROR"):
        push_train(tmp_path)
    warning = r": The following are not valid %s .*: \['alice/%s'\]%s\n"
    line = warning % ("dataset", "weights-test-efficientnet", "; `launch.py weights` makes it")
    assert re.search(line, capsys.readouterr().out)
    (failed,) = server.pushed
    server.invalid = {"invalidKernelSources": [f"alice/{failed}"]}
    push_train(tmp_path, retry=True)
    assert re.search(warning % ("kernel", failed, ""), capsys.readouterr().out)


def test_an_evening_without_network_is_one_line_at_its_begin_and_one_at_its_end(server, tmp_path, capsys):
    server.faults = {"GetKernelSessionStatus": [503, "lost"] * 4}
    push_train(tmp_path)
    begin, end = capsys.readouterr().err.splitlines()
    assert "503 Server Error" in begin
    assert begin.endswith("; trying again for up to 12 hours")
    assert end == "Kaggle answers again, after 35.8 minutes"
    server.faults, server.now = {"GetKernelSessionStatus": [503] * 9}, 0
    with pytest.raises(client.Transient, match="503 Server Error"):
        Client(hours=0.5).status("alice/kernel")
    assert 1800 <= server.now < 2400


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("gaierror: [Errno 11001] getaddrinfo failed", True),
        ("Failed to resolve 'api.kaggle.com' ([Errno -3] Temporary failure in name resolution)", True),
        ("ReadTimeout: Read timed out. (read timeout=300)", True),
        ("SSLError(SSLEOFError(8, 'EOF occurred in violation of protocol'))", True),
        ("HTTPSConnectionPool: Max retries exceeded (SSLError('[SSL: CERTIFICATE_VERIFY_FAILED]'))", False),
        ("404 Client Error: Not Found for url: https://www.kaggle.com/unet-512-503", False),
        ("OSError: [Errno 28] No space left on device", False),
    ],
)
def test_faults_that_pass_are_told_from_those_that_do_not(answer, passes):
    assert isinstance(client.fault("task", answer, answer), client.Transient) is passes


def test_nothing_is_sent_once_the_hours_of_the_week_are_used_up(server, tmp_path, capsys):
    server.hours_left = 0
    with pytest.raises(InputError, match=r"^0.00 of 30.00 GPU hours are left until .*; give then: python kernels/"):
        push_train(tmp_path)
    assert (server.pushed, server.calls) == ({}, ["GetAcceleratorQuotaStatistics"])
    server.hours_left = 12.5
    push_train(tmp_path, accelerator="NvidiaL4", no_run=True)
    (slug,) = server.pushed
    assert f"saved, not run: https://www.kaggle.com/code/alice/{slug}" in capsys.readouterr().out
    assert (server.pushed[slug]["machineShape"], server.statuses) == ("NvidiaL4", {})
    assert [entry.state for entry in Ledger(tmp_path / "launch.json").entries] == ["planned"]
    push_train(tmp_path)
    assert "12.50 of 30.00 GPU hours are left until 2026-10-03 00:00 UTC\n" in capsys.readouterr().out


def test_logs_of_running_sessions_are_printed_after_their_names(server, monkeypatch, capfd):
    monkeypatch.setattr(logs, "subprocess", subprocess)
    server.faults["logs"] = [404]  # there is no log yet
    entry = Entry("train demo", "folds 0", {}, [], "running", "alice/kernel")
    with contextlib.closing(LogStreams(True)) as streams:
        for _ in range(3):
            streams.follow([entry])
            streams.streams["alice/kernel"].process.wait()
        entry.state = "complete"
        streams.follow([entry])
    assert capfd.readouterr().out.splitlines() == [f"[train demo, folds 0] {line}" for line in LOG]


def test_an_interrupted_command_is_continued_by_others(server, tmp_path, capsys):
    with mock.patch.object(sessions.time, "sleep", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        push_train(tmp_path)
    (slug,) = server.pushed
    launch.wait(poll=0)
    assert capsys.readouterr().out.splitlines()[-1] == f"train demo, folds 0: complete  alice/{slug}"
    launch.fetch()
    assert capsys.readouterr().out == f"train demo, folds 0: done, in {tmp_path / 'build' / 'output' / slug}\n"
    push_train(tmp_path)
    assert (server.calls.count("SaveKernel"), server.calls.count("ListKernelSessionOutput")) == (1, 1)
    with pytest.raises(InputError, match="begun with other settings"):
        push_train(tmp_path, tta="hflip")


def test_a_dataset_of_weights_is_made_once(server, capsys):
    for _ in range(2):
        launch.weights("tf_efficientnet_lite0", "alice", None)
    datasets = [(dataset["slug"], dataset["licenseName"]) for dataset in server.datasets]
    assert datasets == [("weights-tf-efficientnet-lite0", "other")]
    assert "exists already" in capsys.readouterr().out
    assert encoder_of("vanilla_unet", []) is None  # which needs none


def test_the_client_runs_in_a_process_of_its_own(server, monkeypatch):
    monkeypatch.setattr(client, "subprocess", subprocess)
    assert Client().status("alice/nothing") == "unknown"
    assert server.calls == ["GetKernelSessionStatus"]


def test_sessions_and_hours_are_planned_before_anything_is_sent(server, capsys):
    launch.plan("demo", folds="0,none", overrides=SMALL, shards=2)
    lines = capsys.readouterr().out.splitlines()
    steps = ["train folds 0", "train folds none", "submit by 1 network(s), 2 view(s)"]
    assert [line.partition(":")[0] for line in lines[:3]] == steps
    assert "h computed, 1 session(s)" in lines[0]
    assert re.search(r": 0\.\d h computed, 2 session\(s\) of two T4, then one without GPU$", lines[2])
    assert lines[-2].endswith("; 12.50 of 30.00 GPU hours are left until 2026-10-03 00:00 UTC: enough")
    assert ("multiplications" in lines[-1], server.calls) == (True, ["GetAcceleratorQuotaStatistics"])


def test_a_budget_is_checked_before_a_push_and_given_to_the_script(server, mounts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimates, "computed_hours", lambda *_: ({}, 6 * 100064 / 3600))
    launch.plan("demo", folds="0,1,2", budget="12h30m")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train folds 0: 12.5 h budgeted, 2 session(s) of two T4"
    assert lines[-3].startswith("in all 38.5 GPU hours, 2 sessions at once; ")  # one to predict
    assert lines[-3].endswith(": not enough, it takes 2 weeks, this one included")
    assert [line.partition(":")[0] for line in lines[-2:]] == ["budgeted", "computed"]
    with pytest.raises(InputError, match="--budget 9: give a time such as"):
        push_train(tmp_path, budget="9")
    assert not Ledger(tmp_path / "launch.json").entries
    commands = []
    monkeypatch.setattr(emulated, "run_packed", lambda command: commands.append(command) or Result(2, "", ""))
    server.execute = lambda request, working: Kaggle(working.parents[1], mounts, request["text"]).run().returncode == 0
    with pytest.raises(InputError, match="ended with status 2"):
        push_train(tmp_path, budget="9h")
    assert commands[0][commands[0].index("--budget") + 1] == "9h"


def test_a_plan_takes_the_rates_of_the_selftest_and_needs_no_quota(server, tmp_path, capsys, monkeypatch):
    rates = {"train_photos_per_second": {"channels_last": 16.0, "contiguous": 20.0}, "predict_photos_per_second": 50}
    selftest, ten_epochs = tmp_path / "build" / "selftest.json", {"folds": "0", "overrides": ["train.epochs=10"]}
    write_json(selftest, {"experiments": {"demo": rates | {"loader_photos_per_second": 40.0}}})
    server.faults = {"GetAcceleratorQuotaStatistics": [503]}
    monkeypatch.setattr(estimates, "computed_hours", lambda *_: ({0: 7.0, "none": 8.0}, 10.0))
    launch.plan("demo", **ten_epochs)
    train, submit, total, last = capsys.readouterr().out.splitlines()
    assert submit.startswith(f"submit by 1 network(s), 2 view(s): {100064 / 25 / 3600:.1f} h measured, 4 session(s)")
    folds = pd.read_csv(packing.FOLDS)["fold"]
    seconds = 10 * 16 * (sum(folds != 0) / 20 + sum(folds == 0) / 40)
    assert train == f"train folds 0: {seconds / 3600:.1f} h measured, 1 session(s) of two T4"
    assert re.search(r"how many GPU hours are left this week is unknown \(.*503 Server Error", total)
    assert last.startswith("measured: ")
    write_json(selftest, {"experiments": {"demo": {"error": "no memory"}}})
    launch.plan("demo", **ten_epochs)
    assert "7.0 h computed" in capsys.readouterr().out


def test_the_plan_of_a_chain_is_held_against_the_quota(server, tmp_path, capsys, monkeypatch):
    rates = {"train_photos_per_second": {"contiguous": 2.0}, "predict_photos_per_second": 25.0}
    rates = {"demo": rates | {"loader_photos_per_second": 30.0}}
    write_json(tmp_path / "build" / "selftest.json", {"experiments": rates})
    monkeypatch.setattr(launch, "GPUS", 2)
    monkeypatch.setattr(estimates, "computed_hours", lambda *_: ({0: 7.0, "none": 8.0}, 10.0))
    server.hours_left, settings = 5, ["train.epochs=2", "data.pseudo_share=3"]
    launch.plan("demo", folds="0,1", overrides=settings, student="demo", shards=3)
    *steps, total, _ = capsys.readouterr().out.splitlines()
    folds = pd.read_csv(packing.FOLDS)["fold"]
    trained = max(2 * 16 * (sum(folds != fold) / 2 + sum(folds == fold) / 15) for fold in (0, 1))  # seconds
    hours = [second / 3600 for second in (trained, 100064 / (50 / 4), 2 * 16 * 4 * 318 / 4, 100064 / 25)]
    names = ["train folds 0 1", "submit and label by 2 network(s), 2 view(s)", "train student demo on both GPUs"]
    names.append("submit student by 1 network(s), 2 view(s)")
    ends = ["1 session(s) of two T4", "3 session(s) of two T4, then one without GPU", *["1 session(s) of two T4"] * 2]
    assert steps == [f"{name}: {h:.1f} h measured, {end}" for name, h, end in zip(names, hours, ends, strict=True)]
    assert total.startswith(f"in all {sum(hours):.1f} GPU hours, 2 sessions at once; 5.00 of 30.00 GPU")
    assert total.endswith(" UTC: not enough, but a whole week's hours are")


def test_hours_beyond_a_week_are_told_in_weeks():
    for numbers, weeks in {(31, 1, 30): 2, (31.5, 1, 30): 3, (100, 30, 20): 5, (9, 0, 0): "inf"}.items():
        assert estimates.verdict(*numbers) == f": not enough, it takes {weeks} weeks, this one included"
    assert [estimates.verdict(9, hours, hours) for hours in (9, float("inf"))] == [": enough", ""]


def test_rates_are_fetched_for_the_plan_even_where_a_test_fails(server, mounts, tmp_path, monkeypatch):
    commands, report = [], {"experiments": {}}

    def run(command: list[str]) -> Result:
        commands.append(command)
        if "--output" in command:
            Path(command[-1]).write_text(json.dumps(report))
        return Result(int("--output" not in command), "", "")  # a test fails

    monkeypatch.setattr(emulated, "run_packed", run)
    server.execute = lambda request, working: Kaggle(working.parents[1], mounts, request["text"]).run().returncode == 0
    with pytest.raises(InputError, match="not all tests in tests/gpu have passed"):
        launch.push_selftest("alice", dirty=True, poll=0)
    tests, benchmark = commands
    assert (tests[1].endswith("pytest/__main__.py"), Path(tests[2]).parts[-2:]) == (True, ("tests", "gpu"))
    assert Path(benchmark[1]).resolve().with_name("library.py").is_file()
    assert benchmark[2:4] == ["--minutes", "5"]
    assert json.loads((tmp_path / "build" / "selftest.json").read_text()) == report
    packed = packing.pack("", packing.FOLDS, None, packing.EXTRA["selftest"])
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert {name.partition("/")[0] for name in names} >= {"benchmarks", "src"}
    assert not [name for name in names if name.startswith("tests/") and not name.startswith("tests/gpu/")]


@pytest.mark.parametrize("rehearsed", [True, False])
def test_a_session_without_its_gpu_ends_at_its_start(tmp_path, monkeypatch, capsys, rehearsed):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "KAGGLE", None if rehearsed else tmp_path)
    monkeypatch.setattr(runtime.Session, "gpus", 0)
    for gpu in (False, True):
        session = runtime.Session({"kernel": "train", "gpu": gpu}, tmp_path / "code", "")
        with contextlib.nullcontext() if rehearsed or not gpu else pytest.raises(SystemExit):
            session.check_gpus()
    assert ("no GPU in this session: verify" in capsys.readouterr().err) is not rehearsed


@pytest.mark.parametrize(("card", "fits"), [("Tesla T4, 7.5", True), ("Tesla P100-PCIE-16GB, 6.0", False)])
def test_a_gpu_that_pytorch_cannot_use_ends_the_kernel_at_its_start(tmp_path, monkeypatch, capsys, card, fits):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "subprocess", SimpleNamespace(run=lambda *_, **__: Result(0, f"{card}\n{card}\n", "")))
    monkeypatch.setattr(runtime.Session, "gpus", 2)
    session = runtime.Session({"kernel": "train", "hours": 1}, tmp_path / "code", "c0ffee")
    with contextlib.nullcontext() if fits else pytest.raises(SystemExit):
        session.check_gpus()
    fault = "error: Tesla P100-PCIE-16GB has compute capability 6.0, and PyTorch needs 7.0 or more: push again"
    lines = [line.partition(", with")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ([] if fits else [fault])


@pytest.mark.parametrize(
    ("number", "mounted", "message"),
    [
        (7, False, "attach the competition; a source that was just attached can be empty on the first run"),
        (0, True, "no test_efficientnet.safetensors: attach the dataset"),
        (4, True, "no status.json of carvana-train-demo-folds-0-"),
        (3, True, "no trained fold of demo"),
        (7, True, "no shard-1-of-....csv.gz: attach the submit kernels' outputs"),
    ],
)
def test_what_is_not_mounted_is_reported(season, mounts, tmp_path, number, mounted, message):
    data = {"carvana-image-masking-challenge": next(iter(mounts.values()))}  # the other place where Kaggle mounts it
    text = season.requests[number]["text"]
    kaggle = Kaggle(tmp_path, data if mounted else {}, text if number == 4 else without_sources(text))
    result = kaggle.run()
    assert (result.returncode, kaggle.status["finished"], message in result.stderr) == (1, False, True)


def test_a_source_that_is_mounted_empty_ends_the_kernel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    for place in ("input/one", "input/notebooks/alice/two"):  # both places where Kaggle mounts a kernel's output
        write_json(tmp_path / place / "status.json", {})
    (tmp_path / "input" / "notebooks" / "alice" / "three").mkdir()
    for sources in (["one", "two"], ["one", "two", "three"]):
        session = runtime.Session({"kernel": "submit", "sources": sources}, tmp_path / "code", "")
        with contextlib.nullcontext() if len(sources) == 2 else pytest.raises(SystemExit):
            session.check_sources()
    assert capsys.readouterr().err.endswith("input: no status.json of three; " + runtime.AGAIN + "\n")


def test_a_kernel_and_its_script_run_as_processes(season, mounts, tmp_path):
    text = without_sources(season.requests[3]["text"]).replace("'threshold': None", "'threshold': 2")
    kaggle = Kaggle(tmp_path, mounts | {"notebooks/alice/trained": season.machines[0].working}, text)
    assert kaggle.start() == 1  # it left nothing to be continued
    assert kaggle.status["faults"] == ["make_submission.py ended with status 2; kernel.log says why"]
    assert "Invalid value for '--threshold'" in kaggle.log


def test_a_fold_fails_and_the_others_result_is_kept(season, mounts, tmp_path):
    """Of the mounted states of a fold the one that was trained furthest is taken, here a broken one."""
    fold, good = tmp_path / "broken" / "runs" / "demo" / "fold1", season.machines[1].working
    (fold / "state" / "epoch-0001").mkdir(parents=True)
    (fold / "state" / "epoch-0001" / "model.safetensors").touch()
    (fold / "run.json").write_text("{")
    (fold / "log.jsonl").write_text("{}\n{}\n")
    sources = {"notebooks/a": good, "notebooks/b": tmp_path / "broken", "notebooks/c": good}
    kaggle = Kaggle(tmp_path, mounts | sources, season.requests[0]["text"].replace("'folds': [0]", "'folds': [0, 1]"))
    assert kaggle.run().returncode == 0  # Kaggle attaches what it left to another session only so
    assert kaggle.status["faults"] == ["fold 1: train.py ended with status 2; kernel.log says why"]
    assert (kaggle.status["folds"], WEIGHTS in kaggle.status["files"]) == ({"0": 0, "1": 2}, True)
    assert "run.json: not readable" in kaggle.log


def test_hours_in_which_no_epoch_fits_are_not_spent_again(season, mounts, tmp_path):
    text = season.requests[0]["text"]
    kaggle = Kaggle(tmp_path, mounts, re.sub(r"'hours': [\d.]+", "'hours': 0", text))
    assert (kaggle.run().returncode, kaggle.status["folds"]) == (0, {"0": 3})
    assert kaggle.status["faults"][0].startswith("not one epoch fits into 0 hours: give more --hours")


def test_a_full_disk_is_reported_and_nothing_is_half_written(season, mounts, tmp_path):
    kaggle = Kaggle(tmp_path, mounts, season.requests[0]["text"])
    with full_disk(1_000_000):  # less than a checkpoint
        result = kaggle.run()
    assert (result.returncode, "File too large" in kaggle.log) == (0, True)
    assert kaggle.status["faults"][0].startswith("fold 0: train.py ended with status")
    assert not [*kaggle.working.rglob("*.safetensors")]


DAYS = """
import sys, time
from pathlib import Path
if "torch.distributed.run" not in sys.orig_argv:
    clock = time.monotonic
    time.monotonic = lambda: clock() + 86400 * sum(1 for name in ("epoch-*", "block-*") for _ in Path(ROOT).rglob(name))
"""


def run_on_two(text: str, root: Path, mounts: dict[str, Path], slow: bool = False) -> Kaggle:
    """A kernel with two processes; if `slow`, on their clock each epoch, or block of photos, takes a day."""
    kaggle = Kaggle(root, mounts, text)
    (root / "sitecustomize.py").write_text(DAYS.replace("ROOT", repr(str(kaggle.working))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root) if slow else "")
        assert kaggle.run(gpus=2).returncode == 0, kaggle.log
    return kaggle


def test_two_processes_that_run_out_of_hours_are_continued_to_the_same_bytes(season, mounts, tmp_path):
    """Training by torchrun, whose own status is 1 then; prediction by a plain process each."""
    together = season.requests[0]["text"].replace("'together': False", "'together': True")
    whole = run_on_two(together, tmp_path / "whole", mounts)
    stopped = run_on_two(together, tmp_path / "stopped", mounts, slow=True)
    continued = run_on_two(together, tmp_path / "continued", mounts | {"notebooks/a": stopped.working})
    sessions = (stopped, continued, whole)
    assert [kaggle.status["folds"] for kaggle in sessions] == [{"0": 3}, {"0": 0}, {"0": 0}]
    first, second = (load_file(kaggle.working / WEIGHTS) for kaggle in (continued, whole))  # they name their mounts
    assert all(torch.equal(first[name], second[name]) for name in second)
    fold = whole.working / "runs" / "demo" / "fold0"
    records = [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]
    assert [(record["processes"], record["photos"]) for record in records] == [(2, 16)] * 2
    assert whole.log.count("fold 0 epoch 1/2") == 1  # one process talks
    text = without_sources(season.requests[3]["text"]).replace("[1, 3]", "[1, 1]")
    trained = {"notebooks/a": whole.working}
    stopped = run_on_two(text, tmp_path / "stopped blocks", mounts | trained, slow=True)
    older = tmp_path / "older" / "submission.csv.gz.parts"  # of a round that had no time for a block
    older.mkdir(parents=True)
    shutil.copy(stopped.working / older.name / "manifest.json", older)
    earlier = {"notebooks/b": stopped.working, "notebooks/c": older.parent}
    continued = Kaggle(tmp_path / "rest", mounts | trained | earlier, text)
    assert continued.run().returncode == 0  # with a single one
    assert (stopped.status["finished"], stopped.status["faults"], continued.status["finished"]) == (False, [], True)
    assert re.search(r"[1-3] of 4 blocks are there already", continued.log)
    options = ["--input", next(iter(mounts.values())), "--runs", whole.working / "runs", "--tta", "none"]
    run_script("make_submission.py", "demo", *options, "--output", tmp_path / "x.csv")
    assert list(read_submission(continued.working / "submission.csv.gz")) == list(read_submission(tmp_path / "x.csv"))


def test_scripts_side_by_side_have_a_gpu_each(tmp_path, monkeypatch):
    calls = {}

    def start(command: list[str], env: dict, **_) -> SimpleNamespace:
        calls[command[-1]] = env.get("CUDA_VISIBLE_DEVICES"), "torch.distributed.run" in command
        return SimpleNamespace(stdout=[f"{command[-1]}\n", "\n"], wait=lambda: int(command[-1]))

    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "subprocess", SimpleNamespace(Popen=start, PIPE=None, STDOUT=None))
    monkeypatch.setattr(runtime.Session, "gpus", 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    session = runtime.Session({"kernel": "train", "hours": 1}, tmp_path / "code", "c0ffee")
    assert session.run_side_by_side("train.py", {f"fold {number}": [number] for number in range(3)}) == [0, 1, 2]
    session.run_script("train.py", 9, processes=2)
    assert calls == {"0": ("0", False), "1": ("1", False), "2": ("0", False), "9": (None, True)}
