"""Kaggle's own command line. Its exit status is not enough: a refused push ends with status 0.

Credentials stay with the client; nothing here reads, prints or keeps them.
"""

import csv
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from subprocess import TimeoutExpired

from packing import COMPETITION

from carvana.errors import InputError

QUOTA = re.compile(r"(?i)maximum weekly.*quota")
BUSY = re.compile(r"(?i)maximum .*(batch|gpu|session)")
TRANSIENT = re.compile(
    r"(?i)\b429 client error|rate limited|\b5\d\d server error|on kaggle's side|connection|timed? ?out|remote end"
    r"|max retries|broken pipe|getaddrinfo|name ?resolution|eof occurred|incomplete ?read|could not submit"
)
FINAL = "CERTIFICATE_VERIFY_FAILED"  # within what looks like a lost connection
UNKNOWN = re.compile(r"(?i)cannot access kernel|\b40[34]\b|not found")
REMEDIES = {
    "401|authentication required": "make a token in your account's settings; input/README.md says where it belongs",
    "403|have access": "accept the competition's rules, and give your own user name with --owner",
    "invalid choice|unrecognized arguments": "the client is too old: pip install -U -r kernels/requirements.txt",
}
PAUSES = (15, 600)  # seconds before the second attempt, and at most; each pause is twice the one before
HOURS = 12  # of attempts
HOUR = 3600
FETCHED = r"^(?!.*\.zip)"  # names of what is downloaded: soft masks, which are large, are only read on Kaggle


class Busy(Exception):
    """Kaggle runs as many sessions of this account as it allows."""


class NoHours(InputError):
    """The week's GPU hours are used up."""


class Transient(InputError):
    """A fault that often passes: too many requests, an error of the server, a cut connection."""


@dataclass(frozen=True)
class Client:
    """Attempts again for `hours` while a fault is one that often passes; Transient after that."""

    hours: float = HOURS

    def push(self, folder: Path, kernel: str, accelerator: str = "", run: bool = True) -> None:
        """Pushes a kernel, which then runs, even if Kaggle does not attach all of its sources: that is printed.

        After a passing fault its status tells whether it arrived. Raises Busy, NoHours, Transient (it may have arrived
        all the same) or InputError (refused).
        """
        task, attempts = f"{folder}: not pushed", count()
        command = ["kernels", "push", "-p", folder, *(["--accelerator", accelerator] if accelerator else [])]
        command, success = (command, "successfully pushed") if run else ([*command, "--no-run"], "successfully saved")

        def attempt() -> str:
            arrived = next(attempts) and self._status(kernel) != "unknown"
            return "" if arrived else self._call(*command, task=task, success=success)

        for line in self._patiently(attempt).splitlines():
            if "not valid" in line:
                remedy = "; `launch.py weights` makes it" if "dataset" in line else ""
                print(f"{kernel}: {line}{remedy}", flush=True)

    def status(self, kernel: str) -> str:
        """QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_...; `unknown` if Kaggle shows no such kernel."""
        return self._patiently(lambda: self._status(kernel))

    def fetch(self, kernel: str, folder: Path) -> None:
        """Downloads a kernel's output but for soft masks, over what an earlier attempt has left."""
        self._ask("kernels", "output", kernel, "-p", folder, "--force", "--file-pattern", FETCHED)

    def quota(self) -> tuple[str, float, float]:
        """A line on the week's GPU hours, those that are left, and all; infinite if the client cannot say."""
        try:
            answer = self._ask("quota", "--format", "json")
            rows = {row["resource"]: row for row in json.loads(answer[answer.index("[") :])}
            left, total = (float(rows["GPU"][key].rstrip("h")) for key in ("remaining", "total"))
            refresh = rows["GPU"]["refreshAt"][:16].replace("T", " ")
        except (InputError, ValueError, KeyError) as error:
            reason = error if isinstance(error, InputError) else last_line(answer)
            return f"how many GPU hours are left this week is unknown ({reason})", math.inf, math.inf
        return f"{left:.2f} of {total:.2f} GPU hours are left until {refresh} UTC", left, total

    def create_dataset(self, folder: Path) -> None:
        """Uploads a new dataset. Raises Transient (it may have arrived) or InputError (name taken, refused)."""
        task, success = f"{folder}: no dataset made of it", "is being created"
        self._patiently(lambda: self._call("datasets", "create", "-p", folder, task=task, success=success))

    def submissions_left(self) -> int | None:
        """How many more Kaggle takes today; None if the client cannot say."""
        try:
            answer = self._ask("competitions", "submission-limits", COMPETITION)
        except InputError:
            return None
        numbers = {name: int(number) for name, number in re.findall(r"(?m)^(\w+ \w+): (\d+)", answer)}
        return numbers.get("Remaining today") if numbers.get("Lifetime submissions") else None  # a new team's are all 0

    def submit(self, file: Path, message: str, ending: str, earlier: int) -> None:
        """Uploads a submission, unless more than `earlier` whose messages end so have arrived.

        Raises as create_dataset.
        """
        command, task = ("competitions", "submit", COMPETITION, "-f", file, "-m", message), f"{file}: not submitted"

        def attempt() -> None:
            if len(self._submissions(ending)) <= earlier:
                self._call(*command, task=task, success="successfully submitted")

        self._patiently(attempt)

    def submissions(self, ending: str) -> list[dict]:
        """The latest with messages that end so, newest first: `status`, `publicScore`, `privateScore`."""
        return self._patiently(lambda: self._submissions(ending))

    def _submissions(self, ending: str) -> list[dict]:
        lines = self._call("competitions", "submissions", COMPETITION, "--csv").splitlines()
        header = next((place for place, line in enumerate(lines) if line.startswith("ref,")), len(lines))
        return [row for row in csv.DictReader(lines[header:]) if row["description"].endswith(ending)]

    def _status(self, kernel: str) -> str:
        try:
            answer = self._call("kernels", "status", kernel)
        except InputError as error:
            if isinstance(error, Transient) or not UNKNOWN.search(str(error)):
                raise
            return "unknown"
        match = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', answer)
        if not match:
            raise InputError(f"{kernel}: no status in the client's answer: {last_line(answer)}")
        return match[1].upper()

    def _ask(self, *arguments: object) -> str:
        return self._patiently(lambda: self._call(*arguments))

    def _call(self, *arguments: object, task: str = "", success: str = "") -> str:
        """What the client prints. Raises `fault` if it ends with an error, or if the answer does not hold `success`."""
        command = [sys.executable, "-m", "kaggle", *map(str, arguments)]
        task = task or f"kaggle {' '.join(map(str, arguments[:3]))}"
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=HOUR)
        except TimeoutExpired:
            raise Transient(f"{task}: no answer for an hour") from None
        answer = result.stdout + result.stderr
        if "No module named kaggle" in answer:
            raise InputError("Kaggle's client is not installed: pip install -r kernels/requirements.txt")
        if result.returncode != 0 or success not in answer.lower():
            raise fault(task, answer, (result.stderr if result.returncode else "") or result.stdout)
        return result.stdout

    def _patiently(self, attempt: Callable):
        """What `attempt` returns, made again after growing pauses while its fault is Transient. One line says so."""
        started, pause, failed = time.monotonic(), PAUSES[0], False
        while True:
            try:
                answer = attempt()
                break
            except Transient as error:
                if time.monotonic() - started >= self.hours * HOUR:
                    raise
                if not failed:
                    print(f"{error}; trying again for up to {self.hours:g} hours", file=sys.stderr, flush=True)
                failed = True
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
        if failed:
            minutes = (time.monotonic() - started) / 60
            print(f"Kaggle answers again, after {minutes:.1f} minutes", file=sys.stderr, flush=True)
        return answer


def fault(task: str, answer: str, message: str) -> Exception:
    """Busy, NoHours, Transient or InputError: the client's message, with a remedy where one is known."""
    line = last_line(message.strip().partition("\n\n")[0])  # the client's own hints follow
    if QUOTA.search(answer):
        return NoHours(line)
    if BUSY.search(answer):
        return Busy(answer)
    remedy = next((f"; {REMEDIES[key]}" for key in REMEDIES if re.search(rf"(?i)\b({key})\b", answer)), "")
    kind = Transient if TRANSIENT.search(answer) and FINAL not in answer else InputError
    return kind(f"{task}: {line}{remedy}")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"
