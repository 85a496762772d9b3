"""What is packed for Kaggle: small, the same each time, readable, and refused where Kaggle would misunderstand."""

import base64
import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def kernels_on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "kernels")


def make(title: str = "carvana demo folds 0 1", **changes):
    from packing import Kernel, train_settings

    settings = train_settings("demo", [0, 1], ["train.epochs=2"], "hflip", 11.5, False)
    return Kernel("train", title, "alice", settings, **changes)


def packed_in(text: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(base64.b85decode(re.search(r'PACKED = "(.+)"', text)[1])))


def test_a_script_holds_all_that_is_needed_and_is_the_same_each_time(tmp_path):
    from packing import LIMIT, build

    one, two = (build(make(), tmp_path / name, dirty=True) for name in ("one", "two"))
    script = (one / "carvana-demo-folds-0-1.py").read_text()
    assert script == (two / "carvana-demo-folds-0-1.py").read_text()
    assert len(script.encode()) < LIMIT / 2
    assert script.startswith("# %% [markdown]\n# # Carvana: training folds")
    inside = packed_in(script)
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.yaml"), ROOT / "folds" / "folds.csv"]:
        assert inside.read(file.relative_to(ROOT).as_posix()) == file.read_bytes()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert inside.read("COMMIT").decode().strip().removesuffix("-dirty") == commit
    assert f"COMMIT = '{commit}" in script


def test_metadata_leaves_nothing_to_the_clients_defaults(tmp_path):
    from packing import build

    folder = build(make(sources=("alice/other",), datasets=("alice/weights",)), tmp_path, dirty=True)
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert metadata == {
        "id": "alice/carvana-demo-folds-0-1", "title": "carvana demo folds 0 1",
        "code_file": "carvana-demo-folds-0-1.py", "language": "python", "kernel_type": "script", "is_private": True,
        "enable_gpu": True, "enable_tpu": False, "enable_internet": False, "dataset_sources": ["alice/weights"],
        "competition_sources": ["carvana-image-masking-challenge"], "kernel_sources": ["alice/other"],
        "model_sources": [], "machine_shape": "NvidiaTeslaT4",
    }  # fmt: skip


def test_a_notebook_has_a_cell_a_step_and_hides_the_packed_code(tmp_path):
    from packing import build

    folder = build(make(notebook=True), tmp_path, dirty=True)
    notebook = nbformat.read(folder / "carvana-demo-folds-0-1.ipynb", 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# Carvana: training folds")
    titles = [cell.source.splitlines()[0] for cell in notebook.cells[1:]]
    assert "# Training" in titles
    hidden = [cell for cell in notebook.cells if cell.metadata.get("_kg_hide-input")]
    assert ["PACKED =" in cell.source for cell in hidden] == [True]


@pytest.mark.parametrize(
    ("title", "changes", "message"),
    [
        ("car", {}, "of 3 characters; Kaggle takes 5 to 50"),
        ("c" * 51, {}, "of 51 characters"),
        ("Carvana demo", {}, "its id would be 'carvana-demo'"),
        ("carvana unet_lite0", {}, "its id would be 'carvana-unet-lite0'"),
        ("carvana demo", {"machine": "h100"}, "--machine h100: .* choose from t4, cpu"),
        ("carvana demo", {"sources": ("other",)}, "source 'other': give owner/slug"),
        ("carvana demo", {"owner": "Alice B"}, "--owner 'Alice B'"),
    ],
)
def test_what_kaggle_would_misunderstand_is_refused(tmp_path, title, changes, message):
    import dataclasses

    from packing import BuildError, build

    with pytest.raises(BuildError, match=message):
        build(dataclasses.replace(make(title), **changes), tmp_path, dirty=True)
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_script_is_refused(tmp_path, monkeypatch):
    import packing

    monkeypatch.setattr(packing, "LIMIT", 1000)
    with pytest.raises(packing.BuildError, match="Kaggle takes less than 1000"):
        packing.build(make(), tmp_path, dirty=True)
    assert list(tmp_path.iterdir()) == []


def test_uncommitted_changes_are_refused_or_stamped(tmp_path, monkeypatch):
    import packing

    answers = {"rev-parse": "f00d", "status": " M src/train.py"}
    monkeypatch.setattr(packing, "git", lambda verb, *_: answers[verb])
    with pytest.raises(
        packing.BuildError, match=r"uncommitted changes \(M src/train.py\); commit them, or give --dirty"
    ):
        packing.build(make(), tmp_path)
    folder = packing.build(make(), tmp_path, dirty=True)
    assert "COMMIT = 'f00d-dirty'" in (folder / "carvana-demo-folds-0-1.py").read_text()


def test_settings_are_checked_before_anything_is_sent(tmp_path):
    from packing import BuildError, encoder_of, parse_folds

    assert parse_folds("0-2,4") == [0, 1, 2, 4]
    for text in ("x", "0-", "1,1", ""):
        with pytest.raises(BuildError, match="--folds"):
            parse_folds(text)
    assert encoder_of("unet_resnet34_512", []) == "resnet34"
    assert encoder_of("unet_resnet34_512", ["model.encoder=resnet18"]) == "resnet18"
    assert encoder_of("vanilla_unet", []) is None
    with pytest.raises(BuildError, match="there are demo, "):
        encoder_of("unet", [])


@pytest.mark.parametrize("kind", ["train", "submit", "merge"])
def test_kernels_are_short(kind):
    assert len((ROOT / "kernels" / kind / "kernel.py").read_text().splitlines()) <= 60


def test_a_mistake_is_one_line_and_status_two(tmp_path):
    import sys

    command = [sys.executable, ROOT / "kernels" / "build.py", "submit", "demo", "--owner", "alice", "--shard", "3/2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "error: --shard 3/2: give i/n with i from 1 to n, such as 1/4\n"
