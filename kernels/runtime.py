"""What the kernels share on Kaggle: mounted sources, scripts side by side, one clock, a summary.

Packed beside `src/` by packing.py. Standard library only; the scripts of `src/` do the work, in processes of their own.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

KAGGLE = Path("/kaggle")
ROOT = Path(os.environ.get("CARVANA_KAGGLE_ROOT", KAGGLE))  # another place for a rehearsal
DEPTH = 6  # folders below input/ that are searched
STOPPED = 3  # exit status of scripts: --hours are over, and the same command continues
RESERVE = 0.04  # of the hours: kept for evaluation, pictures and writing
PHOTOS = {"train", "test", "train_masks", "train_hq", "test_hq"}
OLDEST = 7.0  # compute capability that PyTorch's builds for CUDA 12.8 begin with; a T4 has 7.5, a P100 6.0
OWN = ("status.json", "kernel.log")  # files that status.json does not list
AGAIN = "a source that was just attached can be empty on the first run: run again"


class Session:
    """One run of a kernel, from `settings` that settings.py has checked. `code` holds the unpacked `src/`."""

    def __init__(self, settings: dict, code: Path, commit: str):
        self.started = time.monotonic()
        self.settings, self.code = settings, code
        self.input, self.working = ROOT / "input", ROOT / "working"
        self.status = {"kernel": settings["kernel"], "commit": commit, "faults": []}
        self.scratch = code.parent / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.working.mkdir(parents=True, exist_ok=True)
        print(f"{settings['kernel']} of commit {commit}: {json.dumps(settings)}", flush=True)

    @property
    def hours_left(self) -> float:
        """Hours until a script must have stopped by itself."""
        return max(self.settings["hours"] * (1 - RESERVE) - (time.monotonic() - self.started) / 3600, 0)

    @property
    def memory_gib(self) -> float:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30

    @property
    def gpus(self) -> int:
        return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])

    def check_gpus(self) -> None:
        """Ends the kernel if it was to have a GPU and has none, or one that PyTorch has no code for."""
        if self.settings.get("gpu") and not self.gpus and ROOT == KAGGLE:
            self.fail("no GPU in this session: verify your phone number on kaggle.com, then push again")
        command, cards = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"], []
        if self.gpus:
            with suppress(OSError):
                cards = re.findall(r"(.+), (\d+\.\d+)", subprocess.run(command, capture_output=True, text=True).stdout)
        for name, capability in cards:
            if float(capability) < OLDEST:
                fault = f"{name} has compute capability {capability}, and PyTorch needs {OLDEST} or more"
                self.fail(f"{fault}: push again, with --accelerator NvidiaTeslaT4")

    def check_sources(self) -> None:
        """Ends the kernel unless the output of each of the launcher's sources is mounted: all leave a status.json."""
        mounted = {part for folder, _, files in self._mounted() if "status.json" in files for part in folder.parts}
        if missing := sorted({*self.settings.get("sources", ())} - mounted):
            self.fail(f"{self.input}: no status.json of {', '.join(missing)}; {AGAIN}")

    def find_data(self) -> Path:
        """The folder with the competition's files, wherever it is mounted. Ends the kernel if there is none."""
        samples, photos = {"sample_submission.csv", "sample_submission.csv.zip"}, {"test", "test.zip"}
        for folder, folders, files in self._mounted():
            if samples & {*files} and photos & {*folders, *files}:
                print(f"data: {folder}", flush=True)
                return folder
        self.fail(f"{self.input}: no sample_submission.csv.zip beside test.zip: attach the competition; {AGAIN}")

    def find_weights(self, encoder: str) -> Path:
        """The folder that holds `<encoder>.safetensors`. Ends the kernel if there is none."""
        for folder, _, files in self._mounted():
            if f"{encoder}.safetensors" in files:
                print(f"encoder's weights: {folder}", flush=True)
                return folder
        self.fail(f"{self.input}: no {encoder}.safetensors: attach the dataset of `launch.py weights`; {AGAIN}")

    def find_labels(self) -> Path:
        """Soft or hard labels of the whole test set. Ends the kernel if there are none."""
        for file in [*self.find_all("soft.zip"), *self.find_all("labels.csv.gz")]:
            print(f"labels: {file}", flush=True)
            return file
        self.fail(f"{self.input}: no soft.zip or labels.csv.gz: attach the output that `labels` were made in; {AGAIN}")

    def find_soft(self) -> list[Path]:
        """Out-of-fold soft masks, a file of each mounted session that trained folds."""
        return [folder / "oof_soft.zip" for folder, _, files in self._mounted() if "oof_soft.zip" in files]

    def find_folds(self, experiments: Iterable[str], but: Sequence[Path] = ()) -> dict[tuple[str, str], Path]:
        """For each (experiment, `fold<k>` or `none`) the mounted folder that was trained furthest.

        `but`: folders of experiments that are left out.
        """
        names, furthest = set(experiments), {}
        for folder, folders, _ in self._mounted():
            for fold in folders if folder.name in names and folder not in but else []:
                key, path = (folder.name, fold), folder / fold
                if re.match("fold|none$", fold) and (key not in furthest or how_far(path) > how_far(furthest[key])):
                    furthest[key] = path
        return furthest

    def find_oof(self, experiment: str) -> list[Path]:
        """Folders with out-of-fold results of an experiment."""
        return [folder for folder, _, files in self._mounted() if folder.name == experiment and "oof.json" in files]

    def find_blocks(self, output: Path) -> list[Path]:
        """Folders with blocks of an output, one of each mounted session that predicted some."""
        return [folder for folder, _, _ in self._mounted() if folder.name == f"{output.name}.parts"]

    def find_all(self, pattern: str) -> list[Path]:
        """Mounted files of a name; of several with the same name the last by path."""
        paths = {}
        for folder, _, files in self._mounted():
            paths |= {name: folder / name for name in files if Path(name).match(pattern)}
        return sorted(paths.values())

    def run_script(
        self, script: str, *arguments: object, label: str = "", gpu: int | None = None, processes: int = 1
    ) -> int:
        """Runs a script of `src/`, every line of it shown and logged after the label; its exit status."""
        label = label or script
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(gpu)} if gpu is not None else {})
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        script = self.code / "src" / script
        command = [str(part) for part in (sys.executable, *(torchrun if processes > 1 else []), script, *arguments)]
        print(f"[{label}] {' '.join(command)}", flush=True)
        process = subprocess.Popen(
            command, cwd=self.scratch, env=environment, text=True, errors="replace",
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
        gpus = [slot % self.gpus if self.gpus else None for slot in range(len(jobs))]
        with ThreadPoolExecutor(len(jobs)) as threads:
            pending = [
                threads.submit(self.run_script, script, *arguments, label=label, gpu=gpu)
                for gpu, (label, arguments) in zip(gpus, jobs.items(), strict=True)
            ]
        return [job.result() for job in pending]

    def fault(self, message: str) -> None:
        """Keeps what went wrong; the kernel goes on with the rest."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.status["faults"].append(message)

    def fail(self, message: str) -> None:
        """Ends the kernel."""
        self.fault(message)
        self.end(finished=False)

    def show(self, picture: Path) -> None:
        """Shows a picture in a notebook; a script has nobody to look at it."""
        if "IPython" in sys.modules and picture.exists():
            from IPython.display import Image, display

            display(Image(filename=picture))

    def end(self, finished: bool) -> None:
        """Writes status.json, by which launch.py knows what went wrong, and checks what it fetches.

        Kaggle attaches no output of a session that ended with an error. So after faults the exit status is 1 only if
        there is nothing that could be continued.
        """
        self.status["finished"] = finished and not self.status["faults"]
        self.status["minutes"] = round((time.monotonic() - self.started) / 60, 1)
        try:
            paths = sorted(path for path in self.working.rglob("*") if path.is_file())
            names = {path.relative_to(self.working).as_posix(): path for path in paths if path.name not in OWN}
            self.status["files"] = {name: digest_of(path) for name, path in names.items()}
            temporary = self.working / ".status.json.tmp"
            temporary.write_text(json.dumps(self.status, indent=1))
            temporary.rename(self.working / "status.json")
        except OSError as error:
            self.fault(f"{self.working}: {error}")
        how = "finished" if finished else "not finished: attach this output and run again to continue"
        print(f"{self.status['minutes']} minutes, {'failed' if self.status['faults'] else how}", flush=True)
        if self.status["faults"]:
            sys.exit(0 if self.status.get("files") and (self.working / "status.json").exists() else 1)

    def _mounted(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """os.walk of what is mounted, in order, as deep as Kaggle nests; no folder of photos is entered."""
        for path, folders, files in os.walk(self.input, followlinks=True):
            folder = Path(path)
            yield folder, sorted(folders), sorted(files)
            deep = len(folder.relative_to(self.input).parts) >= DEPTH
            photos = PHOTOS if "sample" in " ".join(files) else set()
            folders[:] = [] if deep else sorted(set(folders) - photos)


def how_far(fold: Path) -> tuple[int, bool]:
    """How many epochs of a fold were trained, and whether it is finished: of as many, that comes first."""
    log, end = fold / "log.jsonl", fold / "end.json"
    epochs = len(log.read_text().splitlines()) if log.exists() else 0
    return epochs, end.exists() and json.loads(end.read_text())["finished"]


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_folder(source: Path, target: Path) -> None:
    """Copies a mounted, read-only folder to where it can be written: `copytree` makes its folders read-only too."""
    for path in filter(Path.is_file, source.rglob("*")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
