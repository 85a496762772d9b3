"""An emulated /kaggle; most of what would start as a process runs in this one, as starting PyTorch takes seconds."""

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import packing
import pytest
import runtime
from conftest import Result, run_script

LIBRARIES = {}  # modules of `carvana` by folder
NOWHERE = "http://127.0.0.1:9"
pack_once = functools.cache(packing.pack)


class Kaggle:
    """A kernel with read-only mounts (folders by their place in input/) and an empty working folder, without GPU."""

    def __init__(self, root: Path, mounts: dict[str, Path], text: str):
        self.root, self.working, self.script = root / "kaggle", root / "kaggle" / "working", root / "kernel.py"
        self.working.mkdir(parents=True)
        self.script.write_text(text)
        for place, source in mounts.items():
            target = shutil.copytree(source, self.root / "input" / place)
            for path in (target, *target.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)

    def mounted(self) -> dict[Path, int]:
        """When each mounted file and folder was changed: for root no mode is read-only."""
        return {path: path.stat().st_mtime_ns for path in (self.root / "input").rglob("*")}

    def run(self, gpus: int = 0) -> Result:
        """Runs the kernel in this process; with GPUs, which are CPUs here, what uses them in processes of its own."""
        before = self.mounted()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("https_proxy", NOWHERE)
            patch.setattr(runtime, "ROOT", self.root)
            patch.setattr(runtime, "subprocess", stand_in(run_packed if gpus == 0 else start_packed))
            patch.setattr(runtime.Session, "gpus", gpus)
            patch.setattr(tempfile, "tempdir", str(self.root))
            patch.setattr(sys, "path", [*sys.path])
            result = run_script(str(self.script), check=False)
        assert self.mounted() == before
        return result

    def start(self) -> int:
        """The kernel's exit status as a process, without a network where that is allowed."""
        environment = {"CARVANA_KAGGLE_ROOT": str(self.root), "TMPDIR": str(self.root), "https_proxy": NOWHERE}
        environment = os.environ | environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        alone = ["unshare", "-n"] if shutil.which("unshare") and not subprocess.call(["unshare", "-n", "true"]) else []
        return subprocess.call([*alone, sys.executable, self.script], cwd=self.working, env=environment)

    @property
    def status(self) -> dict:
        return json.loads((self.working / "status.json").read_text())

    @property
    def log(self) -> str:
        return (self.working / "kernel.log").read_text()


def stand_in(call) -> SimpleNamespace:
    """In the place of the module `subprocess`; `call` runs a command, one at a time, and returns its result."""
    lock = threading.Lock()

    def run(command: list[str], **_) -> Result:
        with lock:
            return call(command)

    def popen(command: list[str], **_) -> SimpleNamespace:
        result = run(command)
        return SimpleNamespace(stdout=io.StringIO(result.stdout + result.stderr), wait=lambda: result.returncode)

    return SimpleNamespace(run=run, Popen=popen, PIPE=None, STDOUT=None)


def run_packed(command: list[str]) -> Result:
    """Runs a script, in blocks of four photos, with its folder's library, whose modules are kept for the next one."""
    folder, blocks = str(Path(command[1]).parent), ["--block-size", 4] if "make_submission" in command[1] else []
    before = swap_library(LIBRARIES.get(folder, {}))
    sys.path.insert(0, folder)
    try:
        return run_script(*command[1:], *blocks, check=False)
    except Exception:  # a process ends with it
        return Result(1, "", traceback.format_exc())
    finally:
        sys.path.remove(folder)
        LIBRARIES[folder] = swap_library(before)


def start_packed(command: list[str]) -> Result:
    """Training and prediction are started as processes; what uses no GPU is run as in `run_packed`."""
    on_gpus = [place for place, part in enumerate(command) if part.endswith(("/train.py", "/make_submission.py"))]
    if not on_gpus:
        return run_packed(command)
    blocks = ["--block-size", "4"] if command[on_gpus[0]].endswith("make_submission.py") else []
    done = subprocess.run(
        [*command, *blocks], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return Result(done.returncode, done.stdout, done.stderr)


def swap_library(modules: dict) -> dict:
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "carvana"}
    sys.modules.update(modules)
    return before


def run_kaggle(command: list[str]) -> Result:
    """Runs `python -m kaggle ...`, with the client that the environment of now asks for."""
    import kaggle.cli  # it would sign in where the environment leads

    kaggle.cli.api = kaggle.KaggleApi()
    return run_script(str(Path(kaggle.__file__).with_name("__main__.py")), *command[3:], check=False)
