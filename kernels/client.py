"""Kaggle's own command line, whose word alone is not enough: a refused push ends with status 0.

Credentials are the client's; nothing here reads, prints or keeps them.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from packing import COMPETITION, BuildError

BUSY = re.compile(r"maximum .*(batch|gpu|session)", re.IGNORECASE)
BRIEF = re.compile(
    r"\b(429|500|502|503|504)\b|connection|timed? ?out|remote end|max retries|broken pipe", re.IGNORECASE
)
REMEDIES = {
    "401": "make a token in your Kaggle account's settings; input/README.md says where it belongs",
    "403": "accept the competition's rules, and give your own user name with --owner",
}
Result = TypeVar("Result")


class Busy(Exception):
    """Kaggle runs as many sessions of this account as it allows."""


class Brief(BuildError):
    """A fault that often passes: too many requests, a server's error, a connection that was cut."""


@dataclass(frozen=True)
class Client:
    """`pauses` are the seconds before each new attempt after a fault that often passes."""

    pauses: tuple[float, ...] = (5, 20, 60)

    def push(self, folder: Path) -> None:
        """Pushes a kernel, which runs at once. Raises Busy, Brief (it may have arrived) or BuildError (refused)."""
        told = self._run("kernels", "push", "-p", folder)
        if "successfully pushed" not in told or "not valid" in told:
            raise Busy(told) if BUSY.search(told) else fault(f"{folder}: not pushed", told)

    def status(self, kernel: str) -> str:
        """QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_...; `unknown` if Kaggle shows no such kernel."""
        try:
            told = self._patiently(lambda: self._run("kernels", "status", kernel))
        except Brief:
            raise
        except BuildError as error:
            if re.search(r"cannot access kernel|403|404|not found", str(error), re.IGNORECASE):
                return "unknown"
            raise
        match = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', told)
        if not match:
            raise BuildError(f"{kernel}: no status in what the client says: {last_line(told)}")
        return match[1].upper()

    def fetch(self, kernel: str, folder: Path) -> None:
        """Downloads a kernel's whole output; what is there already is fetched anew."""
        self._patiently(lambda: self._run("kernels", "output", kernel, "-p", folder, "--force"))

    def create_dataset(self, folder: Path) -> None:
        """Uploads a new dataset. Raises Brief (it may have arrived) or BuildError (refused, or already there)."""
        told = self._run("datasets", "create", "-p", folder)
        if "is being created" not in told:
            raise fault(f"{folder}: no dataset made of it", told)

    def submit(self, file: Path, message: str) -> None:
        """Uploads a submission. Raises Brief (it may have arrived) or BuildError (refused)."""
        what = f"{file}: not submitted"
        told = self._run("competitions", "submit", COMPETITION, "-f", file, "-m", message, what=what)
        if "successfully submitted" not in told.lower():  # some versions end with status 0 all the same
            raise fault(what, told)

    def submitted(self) -> str:
        """The latest submissions, as the client lists them."""
        return self._patiently(lambda: self._run("competitions", "submissions", COMPETITION, "--csv"))

    def _run(self, *arguments: object, what: str | None = None) -> str:
        command = [sys.executable, "-m", "kaggle", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        told = result.stdout + result.stderr
        if "No module named kaggle" in told:
            raise BuildError("Kaggle's client is not installed: pip install -r kernels/requirements.txt")
        if result.returncode != 0:
            what = what or f"kaggle {' '.join(map(str, arguments[:3]))}"
            raise Busy(told) if BUSY.search(told) else fault(what, told)
        return told

    def _patiently(self, call: Callable[[], Result]) -> Result:
        """Calls again after each pause while the fault is one that often passes. Only for what may be done twice."""
        for pause in self.pauses:
            try:
                return call()
            except Brief as error:
                print(f"{error}; again in {pause:g} s", file=sys.stderr, flush=True)
                time.sleep(pause)
        return call()


def fault(what: str, told: str) -> BuildError:
    """The client's words in one line, with a remedy where there is one."""
    remedy = next((f"; {remedy}" for code, remedy in REMEDIES.items() if re.search(rf"\b{code}\b", told)), "")
    message = f"{what}: {last_line(told)}{remedy}"
    return Brief(message) if BRIEF.search(told) else BuildError(message)


def last_line(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-1] if lines else "the client says nothing"
