"""What the kernels share once they run: where Kaggle has mounted what, commands side by side, one clock, a summary.

Packed beside `src/` by build.py. Standard library only; the work is done by the scripts of `src/`, in processes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(os.environ.get("CARVANA_KAGGLE_ROOT", "/kaggle"))  # another place for a rehearsal
DEPTH = 6  # folders below input/ that are searched
STOPPED = 3  # exit status of scripts: --hours are over, and the same command continues
RESERVE = 0.04  # of the hours: kept for evaluation, pictures and writing
AGAIN = "a source that was just attached can be empty on the first run: run again"


class Session:
    """One run of a kernel, from `settings` that build.py has checked. `code` holds the unpacked `src/`."""

    def __init__(self, settings: dict, code: Path, commit: str, digest: str):
        self.started = time.monotonic()
        self.settings, self.code = settings, code
        self.input, self.working = ROOT / "input", ROOT / "working"
        self.status = {
            "kernel": settings["kernel"],
            "commit": commit,
            "digest": digest,
            "finished": False,
            "faults": [],
        }
        self.scratch = code.parent / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.working.mkdir(parents=True, exist_ok=True)
        print(f"{settings['kernel']} of commit {commit}: {json.dumps(settings)}", flush=True)

    @property
    def hours_left(self) -> float:
        """Until what is begun must have stopped by itself; never 0, which scripts take for endless."""
        left = self.settings["hours"] * (1 - RESERVE) - (time.monotonic() - self.started) / 3600
        return max(left, 1e-6)

    @property
    def gpus(self) -> int:
        return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])

    def find_data(self) -> Path:
        """The folder with the competition's files, wherever it is mounted. Ends the kernel if there is none."""
        for folder, folders, files in self._mounted():
            names = {*folders, *files}
            if names & {"sample_submission.csv", "sample_submission.csv.zip"} and names & {"test", "test.zip"}:
                print(f"data: {folder}", flush=True)
                return folder
        self.fail(f"{self.input}: no sample_submission.csv.zip beside test.zip there: attach the competition; {AGAIN}")

    def find_weights(self, encoder: str) -> Path:
        """The folder that holds `<encoder>.safetensors`. Ends the kernel if there is none."""
        for folder, _, files in self._mounted():
            if f"{encoder}.safetensors" in files:
                print(f"encoder's weights: {folder}", flush=True)
                return folder
        self.fail(f"{self.input}: no {encoder}.safetensors there: attach the dataset of kernels/weights.py; {AGAIN}")

    def find_folds(self, experiments: Iterable[str]) -> dict[tuple[str, str], Path]:
        """The run that was trained furthest for each (experiment, fold folder) in what is mounted."""
        wanted, found = set(experiments), {}
        for folder, folders, _ in self._mounted():
            if folder.name in wanted:
                for name in (name for name in folders if name.startswith("fold")):
                    key, run = (folder.name, name), folder / name
                    if key not in found or epochs(run) > epochs(found[key]):
                        found[key] = run
        return found

    def find_oof(self, experiment: str) -> list[Path]:
        """Folders with out-of-fold results of an experiment."""
        return [folder for folder, _, files in self._mounted() if folder.name == experiment and "oof.json" in files]

    def find_all(self, pattern: str) -> list[Path]:
        """Files and folders of a name in what is mounted; of several with the same name the last by path."""
        paths = {}
        for folder, folders, files in self._mounted():
            paths |= {name: folder / name for name in (*folders, *files) if Path(name).match(pattern)}
        return sorted(paths.values())

    def run_script(
        self, script: str, *arguments: object, label: str = "", gpu: int | None = None, processes: int = 1
    ) -> int:
        """Runs a script of `src/`, every line of it shown and logged after the label; its exit status."""
        label = label or script
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(gpu)} if gpu is not None else {})
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), self.code / "src" / script, *arguments]
        print(f"[{label}] {' '.join(map(str, command))}", flush=True)
        process = subprocess.Popen(
            list(map(str, command)), cwd=self.scratch, env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        log = self.working / "kernel.log"
        for line in filter(str.strip, process.stdout):
            print(f"[{label}] {line}", end="", flush=True)
            with suppress(OSError), log.open("a") as file:  # a full disk does not end what still runs
                file.write(f"[{label}] {line}")
        return process.wait()

    def run_side_by_side(self, script: str, jobs: dict[str, list]) -> list[int]:
        """Runs a script with the arguments of each label, all at once, each on a GPU of its own; exit statuses."""
        with ThreadPoolExecutor(len(jobs)) as threads:
            running = [
                threads.submit(self.run_script, script, *job, label=label, gpu=slot % self.gpus if self.gpus else None)
                for slot, (label, job) in enumerate(jobs.items())
            ]
            return [one.result() for one in running]

    def fault(self, message: str) -> None:
        """Notes what went wrong; the kernel goes on with the rest and ends with a non-zero status."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.status["faults"].append(message)

    def fail(self, message: str) -> None:
        self.fault(message)
        self.end(finished=False)

    def show(self, picture: Path) -> None:
        """Shows a picture in a notebook; in a script there is nobody to look."""
        if "IPython" in sys.modules and picture.exists():
            from IPython.display import Image, display

            display(Image(filename=picture))

    def end(self, finished: bool) -> None:
        """Writes status.json, by which launch.py knows what it fetches; a non-zero exit status if there were faults."""
        self.status["finished"] = finished and not self.status["faults"]
        self.status["minutes"] = round((time.monotonic() - self.started) / 60, 1)
        try:
            self.status["files"] = {path.relative_to(self.working).as_posix(): digest_of(path) for path in self._kept()}
            temporary = self.working / ".status.json.tmp"
            temporary.write_text(json.dumps(self.status, indent=1))
            temporary.rename(self.working / "status.json")
        except OSError as error:
            self.fault(f"{self.working}: {error}")
        told = "finished" if self.status["finished"] else "not finished: attach this output and run again to continue"
        print(f"{self.status['minutes']} minutes, {told}", flush=True)
        if self.status["faults"]:
            sys.exit("; ".join(self.status["faults"]))

    def _kept(self) -> list[Path]:
        return sorted(p for p in self.working.rglob("*") if p.is_file() and p.name not in ("status.json", "kernel.log"))

    def _mounted(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """os.walk of what is mounted, in order, as deep as Kaggle nests; no folder of photos is entered."""
        for folder, folders, files in os.walk(self.input, followlinks=True):
            here = Path(folder)
            deep = len(here.relative_to(self.input).parts) >= DEPTH
            yield here, sorted(folders), sorted(files)
            photos = {"train", "test", "train_masks", "train_hq", "test_hq"} if "sample" in " ".join(files) else set()
            folders[:] = [] if deep else sorted(set(folders) - photos)


def epochs(run: Path) -> int:
    """How many epochs of a fold were trained."""
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_folder(source: Path, target: Path) -> None:
    """Copies a mounted, read-only folder to where it can be written."""
    shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
