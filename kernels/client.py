"""Kaggle's own command line. Its exit status is not enough: a refused push ends with status 0.

Credentials stay with the client; nothing here reads, prints or keeps them.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from packing import COMPETITION

from carvana.errors import InputError

BUSY = re.compile(r"(?i)maximum .*(batch|gpu|session)")
TRANSIENT = re.compile(r"(?i)\b(429|50[0234])\b|connection|timed? ?out|remote end|max retries|broken pipe")
UNKNOWN = re.compile(r"(?i)cannot access kernel|403|404|not found")
REMEDIES = {
    "401": "make a token in your Kaggle account's settings; input/README.md says where it belongs",
    "403": "accept the competition's rules, and give your own user name with --owner",
}


class Busy(Exception):
    """Kaggle runs as many sessions of this account as it allows."""


class Transient(InputError):
    """A fault that often passes: too many requests, an error of the server, a cut connection."""


@dataclass(frozen=True)
class Client:
    """`pauses` are the seconds before each new attempt after a fault that often passes."""

    pauses: tuple[float, ...] = (5, 20, 60)

    def push(self, folder: Path) -> None:
        """Pushes a kernel, which then runs. Raises Busy, Transient (it may have arrived) or InputError (refused)."""
        task = f"{folder}: not pushed"
        answer = self._call("kernels", "push", "-p", folder, task=task, success="successfully pushed")
        if "not valid" in answer:
            raise fault(task, answer)

    def status(self, kernel: str) -> str:
        """QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_...; `unknown` if Kaggle shows no such kernel."""
        try:
            answer = self._ask("kernels", "status", kernel)
        except InputError as error:
            if isinstance(error, Transient) or not UNKNOWN.search(str(error)):
                raise
            return "unknown"
        match = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', answer)
        if not match:
            raise InputError(f"{kernel}: no status in the client's answer: {last_line(answer)}")
        return match[1].upper()

    def fetch(self, kernel: str, folder: Path) -> None:
        """Downloads a kernel's whole output, over what an earlier attempt has left."""
        self._ask("kernels", "output", kernel, "-p", folder, "--force")

    def create_dataset(self, folder: Path) -> None:
        """Uploads a new dataset. Raises Transient (it may have arrived) or InputError (name taken, refused)."""
        task = f"{folder}: no dataset made of it"
        self._call("datasets", "create", "-p", folder, task=task, success="is being created")

    def submit(self, file: Path, message: str) -> None:
        """Uploads a submission. Raises Transient (it may have arrived) or InputError (refused)."""
        command = ("competitions", "submit", COMPETITION, "-f", file, "-m", message)
        self._call(*command, task=f"{file}: not submitted", success="successfully submitted")

    def submitted(self) -> str:
        """The latest submissions, as the client lists them."""
        return self._ask("competitions", "submissions", COMPETITION, "--csv")

    def _call(self, *arguments: object, task: str = "", success: str = "") -> str:
        """The client's answer. Raises `fault` if it ends with an error, or if the answer does not hold `success`."""
        command = [sys.executable, "-m", "kaggle", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True)
        answer = result.stdout + result.stderr
        if "No module named kaggle" in answer:
            raise InputError("Kaggle's client is not installed: pip install -r kernels/requirements.txt")
        if result.returncode != 0 or success not in answer.lower():
            raise fault(task or f"kaggle {' '.join(map(str, arguments[:3]))}", answer)
        return answer

    def _ask(self, *arguments: object) -> str:
        """Calls again after each pause while the fault is transient. Only for what may be done twice."""
        for pause in self.pauses:
            try:
                return self._call(*arguments)
            except Transient as error:
                print(f"{error}; again in {pause:g} s", file=sys.stderr, flush=True)
                time.sleep(pause)
        return self._call(*arguments)


def fault(task: str, answer: str) -> Exception:
    """Busy, Transient or InputError: the client's last line, with a remedy where one is known."""
    if BUSY.search(answer):
        return Busy(answer)
    remedy = next((f"; {remedy}" for code, remedy in REMEDIES.items() if re.search(rf"\b{code}\b", answer)), "")
    message = f"{task}: {last_line(answer)}{remedy}"
    return Transient(message) if TRANSIENT.search(answer) else InputError(message)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"
