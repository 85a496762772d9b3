"""What is packed for Kaggle: small, the same each time, readable, and refused where Kaggle would misunderstand."""

import base64
import io
import json
import re
import zipfile
from pathlib import Path

import nbformat
import packing
import pytest
from conftest import Result, run_script
from packing import LIMIT, Kernel, build
from settings import train_settings

from carvana.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TITLE, SLUG = "carvana demo folds 0 1", "carvana-demo-folds-0-1"


def make(**changes) -> Kernel:
    settings = train_settings("demo", [0, 1], ["train.epochs=2"], "hflip", 11.5, False)
    return Kernel("train", changes.pop("title", TITLE), changes.pop("owner", "alice"), settings, **changes)


def build_by_hand(*arguments: object) -> Result:
    return run_script(str(ROOT / "kernels" / "build.py"), *arguments, "--owner", "alice", check=False)


def test_a_script_holds_all_that_is_needed_and_is_the_same_each_time(tmp_path):
    build_by_hand("train", "demo", "--set", "train.epochs=2", "--dirty", "--output", tmp_path / "0")
    script = (build(make(), tmp_path / "1", dirty=True) / f"{SLUG}.py").read_text()
    assert script == (tmp_path / "0" / SLUG / f"{SLUG}.py").read_text()
    assert len(script) < LIMIT / 2
    sources = {path for suffix in ("py", "yaml", "html", "js") for path in ROOT.glob(f"src/**/*.{suffix}")}
    files = sources - {*ROOT.glob("src/demo/*")} | {ROOT / "folds" / "folds.csv", ROOT / "kernels" / "runtime.py"}
    contents = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    inside = zipfile.ZipFile(io.BytesIO(base64.b85decode(re.search(r"PACKED = .(.+).\n", script)[1])))
    packed = {name: inside.read(name) for name in inside.namelist()}
    assert packed.pop("COMMIT").decode().strip().removesuffix("-dirty") == packing.git("rev-parse", "HEAD")
    assert packed == contents


def test_a_notebook_has_the_scripts_cells_and_its_metadata_leaves_nothing_to_the_clients_defaults(tmp_path):
    script = (build(make(), tmp_path, dirty=True) / f"{SLUG}.py").read_text()
    folder = build(make(notebook=True, sources=("alice/other",), datasets=("alice/weights",)), tmp_path, dirty=True)
    notebook = nbformat.read(folder / f"{SLUG}.ipynb", 4)
    nbformat.validate(notebook)
    (title, *cells), (head, *parts) = notebook.cells, re.split(r"^# %% ", script, flags=re.MULTILINE)[1:]
    assert (title.cell_type, title.source.splitlines()[0]) == ("markdown", head.splitlines()[1].removeprefix("# "))
    assert [cell.source for cell in cells] == [f"# {part}".strip() for part in parts]
    assert ["PACKED =" in cell.source for cell in cells if cell.metadata.get("_kg_hide-input")] == [True]
    assert json.loads((folder / "kernel-metadata.json").read_text()) == {
        "id": f"alice/{SLUG}", "title": TITLE, "code_file": f"{SLUG}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": True, "enable_tpu": False,
        "enable_internet": False, "dataset_sources": ["alice/weights"], "kernel_sources": ["alice/other"],
        "competition_sources": ["carvana-image-masking-challenge"], "model_sources": [],
        "machine_shape": "NvidiaTeslaT4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "car"}, "3 characters; Kaggle takes 5 to 50"),
        ({"title": "c" * 51}, "51 characters"),
        ({"title": "Carvana demo"}, "its id would be 'carvana-demo'"),
        ({"sources": ("other",)}, "source 'other': give owner/slug"),
        ({"owner": "Alice B"}, "--owner 'Alice B'"),
        ({}, "Kaggle takes less than 1,000"),
    ],
)
def test_what_kaggle_would_refuse_or_misunderstand_is_refused(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(packing, "LIMIT", 1000)
    with pytest.raises(InputError, match=message):
        build(make(**changes), tmp_path, dirty=True)
    assert list(tmp_path.iterdir()) == []


def test_uncommitted_changes_are_refused_or_stamped(tmp_path, monkeypatch):
    answers = {"rev-parse": "f00d", "status": " M src/train.py"}
    monkeypatch.setattr(packing, "git", lambda verb, *_: answers[verb])
    with pytest.raises(InputError, match=r"uncommitted changes \(M src/train.py\); commit them, or give --dirty"):
        build(make(), tmp_path)
    assert "COMMIT = 'f00d-dirty'" in (build(make(), tmp_path, dirty=True) / f"{SLUG}.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("submit demo --shard 3/2", "--shard 3/2: give i/n with i from 1 to n, such as 1/3"),
        ("train demo --fold 0-", "--fold 0-: give a number, several as 0,1, "),
        ("submit demo --labels sure", "--labels sure: give hard or soft"),
        ("submit demo --fold 0-2", "--fold 0-2: give a number, several as 0,1, "),
        ("train unet", "no such experiment; choose from demo, "),
        ("train demo --set train.epoch=1", "did you mean epochs"),
        ("train demo --budget 9", "--budget 9: give a time such as 30m, 11h, 1h30m or 90s"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(arguments, message):
    status, _, stderr = build_by_hand(*arguments.split())
    assert (status, stderr.count("\n"), stderr[:7], message in stderr) == (2, 1, "error: ", True)
