"""What several tests share: scripts called in process, a tiny model, drawn cars, a clean process for each test."""

import contextlib
import io
import os
import resource
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

from carvana.config import parse_config
from carvana.data.archive import Archive
from carvana.errors import InputError

settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("unhurried")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # which scripts set; tests import before they run one

SRC = Path(__file__).resolve().parents[1] / "src"
TINY = {
    "name": "tiny",
    "data": {"size": [32, 48], "num_workers": 0},
    "model": {"encoder": "test_efficientnet", "pretrained": False, "decoder_channels": [8, 8, 8, 8, 8]},
    "optim": {},
    "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
}


@pytest.fixture(autouse=True)
def fresh_process():
    """accelerate keeps its first precision for the process, and numba gives PyTorch its own threads: neither stays."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def tiny():
    """Configuration of a model that trains in a second, with changes such as `train={"epochs": 1}`."""

    def build(**changes):
        groups = {key: TINY[key] | changes.get(key, {}) for key in TINY if isinstance(TINY[key], dict)}
        return parse_config(TINY | changes | groups, "tiny")

    return build


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_script(script: str, *arguments: object, check: bool = True, cwd: Path | None = None) -> Result:
    """Calls a script in this process as `python src/<script>` would; fails with its output if it fails unexpectedly."""
    output, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(SRC / script), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), contextlib.chdir(cwd or "."):
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
        AcceleratorState._reset_state(reset_partial_state=True)
    result = Result(status, output.getvalue(), errors.getvalue())
    assert not check or status == 0, result.stdout + result.stderr
    return result


@contextlib.contextmanager
def full_disk(most: int):
    """No file grows beyond `most` bytes: writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def carvana_data() -> Path:
    """The competition's files: those that CARVANA_DATA names, or in input/, if they are there."""
    if named := os.environ.get("CARVANA_DATA"):
        return Path(named)
    archive = Archive(SRC.parent / "input")
    try:
        archive.part("train"), archive.part("train_masks"), archive.read_file("train_masks.csv")
    except InputError as error:
        pytest.skip(str(error))
    return archive.root


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with input/ (4 drawn training cars and 1 test car, 96x144 pixels) and folds.csv (2 folds)."""
    root = tmp_path_factory.mktemp("demo")
    few_and_small = ["--train-cars", 4, "--test-cars", 1, "--size", "96x144", "--workers", 1]
    run_script("draw.py", "demo", "--output", root / "input", *few_and_small)
    run_script("create_folds.py", "--input", root / "input", "--num-folds", 2, "--output", root / "folds.csv", cwd=root)
    return root
