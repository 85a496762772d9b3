"""launch.py over Kaggle's real client, to a server on this machine (kaggle_stub.py) that runs what is pushed to it.

The packed kernels run as on Kaggle (emulated.py), one of them as a process that starts a packed script as a process.
"""

import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import client
import launch
import outputs
import packing
import pandas as pd
import pytest
import runtime
import sessions
import torch
from client import Client
from conftest import full_disk, run_script
from emulated import Kaggle, pack_once, run_kaggle, stand_in
from kaggle_stub import KaggleStub
from safetensors.torch import save_file
from settings import encoder_of

from carvana.errors import InputError
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
        patch.setattr(launch, "GPUS", 1)
        for module in (launch, sessions):
            patch.setattr(module, "BUILD", root / "build")
            patch.setattr(module, "Client", lambda: Client(pauses=(0.01, 0.01)))
            patch.setattr(module, "time", SimpleNamespace(sleep=server.work, time_ns=time.time_ns))
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
            push_train(root, folds="0-1", cars=cars, folds_file=folds_file)
        for _ in range(2):
            launch.push_submit("demo", "alice", shards=3, tta="none", dirty=True, poll=0, **files)
        server.faults, files["runs"] = {"CreateSubmission": ["lost", "cut"]}, root / "runs"
        for _ in range(2):
            with pytest.raises(InputError, match="not submitted"):
                launch.submit("demo", **files)
        launch.submit("demo", **files)  # the second one had arrived
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
    assert ("overlays.jpg" in merged.status["files"], "rows of 3 parts, checked" in merged.log) == (True, True)
    assert (season.server.uploads, len(season.server.submissions)) == ([file.read_bytes()] * 3, 2)
    message = r"demo, folds 0 1, none, CV 0\.\d{5} of 32 photos, commit [0-9a-f]{7}"
    assert re.fullmatch(message, season.server.submissions[0])
    (record,) = read_journal(season.root / "submissions" / "log.jsonl")
    assert (record["file"], record["threshold"], record["cv"][0]["photos"]) == (file.name, oof["threshold"], 32)
    assert record["command"] == "launch.py push submit --experiment demo"


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
        ({"SaveKernel": ["busy", "busy"]}, [], "", 3, 1),
        ({"GET": [None, "cut"]}, [], "", 1, 1),
        ({"SaveKernel": ["refuse"]}, [], "not pushed: .*Your notebook was refused", 2, 1),
        ({"SaveKernel": [403]}, [], "accept the competition's rules", 2, 1),
        ({}, [{"faults": ["fold 0: train.py ended"]}], r"fold 0: train.py ended.*--retry", 2, 2),
        ({}, [{"files": {"worst.jpg": "digest"}}], "worst.jpg does not arrive whole", 2, 2),
        ({}, [None], "ended with ERROR, it left no status.json", 2, 2),
    ],
)
def test_faults_are_waited_for_or_reported(server, season, tmp_path, faults, endings, message, pushes, pushed):
    server.faults, server.endings = {method: [*faults[method]] for method in faults}, [*endings]
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        push_train(tmp_path)
    push_train(tmp_path, retry=True)
    assert (server.calls.count("SaveKernel"), len(server.pushed)) == (pushes, pushed)
    assert (tmp_path / WEIGHTS).read_bytes() == (season.machines[0].working / WEIGHTS).read_bytes()


def test_an_interrupted_command_is_continued_by_others(server, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sessions.time, "sleep", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
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
    launch.plan("demo", folds="0,1", overrides=SMALL, shards=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["train folds 0", "train folds 1"]
    assert ("none was measured on Kaggle" in lines[-1], server.calls) == (True, [])


@pytest.mark.parametrize(
    ("number", "mounted", "message"),
    [
        (7, False, "attach the competition; a source that was just attached can be empty on the first run"),
        (0, True, "no test_efficientnet.safetensors: attach the dataset"),
        (3, True, "no trained fold of demo"),
        (7, True, "no shard-1-of-....csv.gz: attach the submit kernels' outputs"),
    ],
)
def test_what_is_not_mounted_is_reported(season, mounts, tmp_path, number, mounted, message):
    data = {"carvana-image-masking-challenge": next(iter(mounts.values()))}  # the other place where Kaggle mounts it
    kaggle = Kaggle(tmp_path, data if mounted else {}, season.requests[number]["text"])
    result = kaggle.run()
    assert (result.returncode, kaggle.status["finished"], message in result.stderr) == (1, False, True)


def test_a_kernel_and_its_script_run_as_processes(season, mounts, tmp_path):
    text = season.requests[3]["text"].replace("'threshold': None", "'threshold': 2")
    kaggle = Kaggle(tmp_path, mounts | {"notebooks/alice/trained": season.machines[0].working}, text)
    assert kaggle.start() == 1
    assert kaggle.status["faults"] == ["make_submission.py ended with status 2; kernel.log says why"]
    assert "Invalid value for '--threshold'" in kaggle.log


def test_a_fold_fails_and_the_others_result_is_kept(season, mounts, tmp_path):
    """Of the mounted states of a fold the one that was trained furthest is taken, here a broken one."""
    fold, good = tmp_path / "broken" / "runs" / "demo" / "fold1", season.machines[1].working
    (fold / "state" / "epoch-0001").mkdir(parents=True)
    (fold / "run.json").write_text("{")
    (fold / "log.jsonl").write_text("{}\n{}\n")
    sources = {"notebooks/a": good, "notebooks/b": tmp_path / "broken", "notebooks/c": good}
    kaggle = Kaggle(tmp_path, mounts | sources, season.requests[0]["text"].replace("'folds': [0]", "'folds': [0, 1]"))
    assert kaggle.run().returncode == 1
    assert kaggle.status["faults"] == ["fold 1: train.py ended with status 2; kernel.log says why"]
    assert (kaggle.status["folds"], WEIGHTS in kaggle.status["files"]) == ({"0": 0, "1": 2}, True)
    assert "has no readable run.json" in kaggle.log


def test_a_full_disk_is_reported_and_nothing_is_half_written(season, mounts, tmp_path):
    kaggle = Kaggle(tmp_path, mounts, season.requests[0]["text"])
    with full_disk(1_000_000):  # less than a checkpoint
        result = kaggle.run()
    assert (result.returncode, "File too large" in kaggle.log) == (1, True)
    assert kaggle.status["faults"][0].startswith("fold 0: train.py ended with status")
    assert not [*kaggle.working.rglob("*.safetensors")]


def test_scripts_side_by_side_have_a_gpu_each(tmp_path, monkeypatch):
    calls = {}

    def start(command: list[str], env: dict, **_) -> SimpleNamespace:
        calls[command[-1]] = env.get("CUDA_VISIBLE_DEVICES"), "torch.distributed.run" in command
        return SimpleNamespace(stdout=[f"{command[-1]}\n", "\n"], wait=lambda: int(command[-1]))

    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setattr(runtime, "subprocess", SimpleNamespace(Popen=start, PIPE=None, STDOUT=None))
    monkeypatch.setattr(runtime.Session, "gpus", 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    session = runtime.Session({"kernel": "train", "hours": 1}, tmp_path / "code", "c0ffee", "d1")
    assert session.run_side_by_side("train.py", {f"fold {number}": [number] for number in range(3)}) == [0, 1, 2]
    session.run_script("train.py", 9, processes=2)
    assert calls == {"0": ("0", False), "1": ("1", False), "2": ("0", False), "9": (None, True)}
