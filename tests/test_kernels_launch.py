"""launch.py over Kaggle's real client, which talks to a server on this machine: see kaggle_stub.py."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kaggle_stub import KaggleStub

from carvana.journal import read_journal
from carvana.metrics import THRESHOLDS
from carvana.oof import Found, _write
from carvana.shards import Manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """The server; launch.py's files are in tmp_path, and it does not wait between questions."""
    stub = KaggleStub()
    monkeypatch.syspath_prepend(ROOT / "kernels")
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    for name, value in stub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    import client
    import launch
    import sessions

    monkeypatch.setattr(launch, "LEDGER", tmp_path / "launch.json")
    for module in (launch, sessions):
        monkeypatch.setattr(module, "BUILD", tmp_path / "build")
        monkeypatch.setattr(module, "Client", lambda: client.Client(pauses=(0.01, 0.01)))
    stub.on_push = lambda request: finish_training(stub, request, tmp_path / "kaggle")
    yield stub
    stub.close()


def settings_of(request: dict) -> dict:
    """What a pushed kernel was told."""
    line = next(line for line in request["text"].splitlines() if line.startswith("SETTINGS = "))
    return eval(line.removeprefix("SETTINGS = "))


def write_status(folder: Path, finished: bool = True, faults: tuple[str, ...] = ()) -> None:
    from runtime import digest_of

    files = {p.relative_to(folder).as_posix(): digest_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    told = {"finished": finished, "faults": list(faults), "files": files, "commit": "c0ffee" * 6}
    (folder / "status.json").write_text(json.dumps(told))


def finish_training(stub: KaggleStub, request: dict, root: Path, **status) -> None:
    """Puts the output of a training kernel onto the server."""
    slug, settings = request["slug"].rpartition("/")[2], settings_of(request)
    folder = stub.outputs[slug] = root / slug
    for fold in settings["folds"]:
        path = folder / "runs" / "demo" / f"fold{fold}" / "best.safetensors"
        path.parent.mkdir(parents=True)
        path.write_text(f"weights of fold {fold}" * 50)
    names = [(f"car{fold}_{angle:02}", f"car{fold}", angle, fold) for fold in settings["folds"] for angle in (1, 2)]
    table = pd.DataFrame(names, columns=["image_id", "car", "angle", "fold"])
    curves = np.tile(1 - 0.1 * np.abs(np.array(THRESHOLDS) - 0.45), (len(table), 1))
    trained = {str(fold): "d1" for fold in settings["folds"]}
    missing = sorted({0, 1, 2} - set(settings["folds"]))
    facts = {"tta": ["identity", "hflip"], "checkpoints": trained, "folds_missing": missing, "folds_digest": "d2"}
    _write(folder / "runs" / "demo", Found(table, curves, ["1 1"] * len(table)), facts)
    write_status(folder, **status)


MANIFEST = Manifest(
    shard="1/1", first=0, photos=2, sample="", sample_photos=2, size=(4, 6),
    checkpoints={"demo": {"0": "d1", "1": "d1", "2": "d1"}}, weights={"demo": 1.0}, views=["identity", "hflip"],
    mean="probs", threshold=0.45, postprocess={}, batch_size=4, block_size=4, device="cpu", backend="torch",
    commit="c0ffee", versions={},
)  # fmt: skip


def push_train(tmp_path, **changes) -> None:
    import launch

    options = {"overrides": [], "folds": "0-2", "dirty": True, "poll": 0, "runs": tmp_path / "runs"} | changes
    launch.push_train("demo", "alice", **options)


def test_from_training_to_the_leaderboard(kaggle, tmp_path, capsys):
    import launch

    busy = []

    def at_most_two(request):
        running = [slug for slug in kaggle.pushed if len(kaggle.statuses.get(slug, ["", ""])) > 1]
        busy.append(len(running))
        finish_training(kaggle, request, tmp_path / "kaggle")

    kaggle.on_push = at_most_two
    push_train(tmp_path, folds="0-2")
    assert len(kaggle.pushed) == 2
    assert max(busy) <= 2
    one = next(iter(kaggle.pushed.values()))
    assert (one["machineShape"], one["enableGpu"], one["enableInternet"]) == ("NvidiaTeslaT4", True, False)
    assert one["datasetDataSources"] == ["alice/weights-tf-efficientnet-lite0"]
    assert sorted(path.name for path in (tmp_path / "runs" / "demo").glob("fold*")) == ["fold0", "fold1", "fold2"]
    oof = json.loads((tmp_path / "runs" / "demo" / "oof.json").read_text())
    assert (oof["photos"], oof["folds_missing"], oof["threshold"]) == (6, [], 0.45)

    push_train(tmp_path)  # given again, nothing is pushed twice (the server would refuse)
    trained = set(kaggle.pushed)
    kaggle.on_push = lambda request: finish_submission(kaggle, request, tmp_path / "kaggle")
    submissions = tmp_path / "submissions"
    submissions.mkdir()
    (submissions / "README.md").write_text((ROOT / "submissions" / "README.md").read_text())
    for _ in range(2):
        launch.push_submit("demo", "alice", shards=2, dirty=True, poll=0, submissions=submissions)
    others = [request for slug, request in kaggle.pushed.items() if slug not in trained]
    assert [settings_of(one).get("shard") for one in others] == [[1, 2], [2, 2], None]
    assert {name.rpartition("/")[2] for name in others[0]["kernelDataSources"]} == trained
    assert others[2]["enableGpu"] is False
    assert (submissions / "demo.csv.gz").read_text() == "the merged CSV"

    launch.submit("demo", runs=tmp_path / "runs", submissions=submissions)
    assert kaggle.uploads[-1] == b"the merged CSV"
    message = kaggle.submissions[0]["submissionDescription"]
    assert message == "demo, folds 0 1 2, hflip, CV 1.00000 of 6 photos, commit c0ffeec"
    (row,) = read_journal(submissions / "README.md")
    assert (row["file"], row["experiments"], row["folds"], row["threshold"]) == ("demo.csv.gz", "demo", "0 1 2", "0.45")
    assert row["command"] == "`launch.py push submit --experiment demo`"
    assert row["CV (95 % of cars drawn anew)"] == "1.00000 (1.00000 to 1.00000) of 6 photos"
    with pytest.raises(launch.BuildError, match="was submitted before"):
        launch.submit("demo", runs=tmp_path / "runs", submissions=submissions)
    assert "secret-key" not in capsys.readouterr().out + (tmp_path / "launch.json").read_text()


def finish_submission(stub: KaggleStub, request: dict, root: Path) -> None:
    slug, settings = request["slug"].rpartition("/")[2], settings_of(request)
    folder = stub.outputs[slug] = root / slug
    folder.mkdir(parents=True)
    if "shard" in settings:
        (folder / f"shard-{settings['shard'][0]}-of-2.csv.gz").write_text(slug)
    else:
        (folder / "submission.csv.gz").write_text("the merged CSV")
        write_manifest(folder / "submission.csv.gz.json", MANIFEST)
    write_status(folder)


@pytest.mark.parametrize("fault", [429, 500, "lost"])
def test_what_often_passes_is_asked_again(kaggle, tmp_path, fault):
    kaggle.faults = {"SaveKernel": [fault], "GetKernelSessionStatus": [fault], "ListKernelSessionOutput": [fault]}
    push_train(tmp_path, folds="0")
    assert len(kaggle.pushed) == 1


def test_a_push_whose_answer_was_lost_is_not_pushed_twice(kaggle, tmp_path):
    kaggle.faults = {"SaveKernel": ["cut"]}
    push_train(tmp_path, folds="0")
    assert kaggle.calls.count("SaveKernel") == 1


def test_a_busy_kaggle_is_waited_for(kaggle, tmp_path, capsys):
    kaggle.faults = {"SaveKernel": ["busy", "busy"]}
    push_train(tmp_path, folds="0")
    assert kaggle.calls.count("SaveKernel") == 3
    assert "busy with other sessions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [("refuse", "not pushed: .*Your notebook was refused"), (403, "accept the competition's rules")],
)
def test_a_refused_push_is_an_error_and_may_be_repeated(kaggle, tmp_path, fault, message):
    from packing import BuildError

    kaggle.faults = {"SaveKernel": [fault]}
    with pytest.raises(BuildError, match=message):
        push_train(tmp_path, folds="0")
    assert json.loads((tmp_path / "launch.json").read_text())["sessions"][0]["state"] == "planned"
    push_train(tmp_path, folds="0")
    assert len(kaggle.pushed) == 1


def test_a_download_that_was_cut_is_fetched_anew(kaggle, tmp_path):
    kaggle.faults = {"GET": [1]}
    push_train(tmp_path, folds="0")
    weights = tmp_path / "runs" / "demo" / "fold0" / "best.safetensors"
    assert weights.read_text() == "weights of fold 0" * 50


def test_hours_that_are_over_are_continued_by_another_session(kaggle, tmp_path):
    def rounds(request):
        finish_training(kaggle, request, tmp_path / "kaggle", finished=len(kaggle.pushed) == 2)

    kaggle.on_push = rounds
    push_train(tmp_path, folds="0")
    first, second = kaggle.pushed
    assert kaggle.pushed[second]["kernelDataSources"] == [f"alice/{first}"]


def test_a_failed_session_is_told_and_pushed_again_on_demand(kaggle, tmp_path):
    from packing import BuildError

    def fail(request):
        kaggle.statuses[request["slug"].rpartition("/")[2]] = ["ERROR"]
        finish_training(kaggle, request, tmp_path / "kaggle", finished=False, faults=("fold 0: train.py ended",))

    kaggle.on_push = fail
    with pytest.raises(BuildError, match=r"ended with ERROR, fold 0: train.py ended.*--retry"):
        push_train(tmp_path, folds="0")
    kaggle.on_push = lambda request: finish_training(kaggle, request, tmp_path / "kaggle")
    push_train(tmp_path, folds="0", retry=True)
    assert len(kaggle.pushed) == 2


def test_other_settings_under_the_same_name_are_refused(kaggle, tmp_path):
    from packing import BuildError

    push_train(tmp_path, folds="0")
    with pytest.raises(BuildError, match="begun with other settings"):
        push_train(tmp_path, folds="0", tta="none")


def test_an_upload_that_breaks_off_goes_on_or_is_no_submission(kaggle, tmp_path):
    from client import Client
    from packing import BuildError

    file = tmp_path / "x.csv"
    file.write_text("img,rle_mask\n" * 100)
    kaggle.faults = {"PUT": [400]}  # the client says so, with status 0 or 1, as its version has it
    with pytest.raises(BuildError, match=r"x\.csv: not submitted"):
        Client(pauses=()).submit(file, "x")
    assert kaggle.submissions == []
    kaggle.faults = {"PUT": ["cut"]}
    Client(pauses=()).submit(file, "x")
    assert kaggle.uploads == [file.read_bytes()]


def test_a_dataset_of_weights_is_made_once(kaggle, tmp_path, capsys):
    import launch

    launch.weights("tf_efficientnet_lite0", "alice")
    launch.weights("tf_efficientnet_lite0", "alice")
    assert [one["slug"] for one in kaggle.datasets] == ["weights-tf-efficientnet-lite0"]
    assert "is there already" in capsys.readouterr().out
