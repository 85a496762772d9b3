"""Sessions on Kaggle: built, pushed, watched, fetched, continued, as many at once as an account may have."""

import hashlib
import json
import sys
import time
from pathlib import Path

from client import Brief, Busy, Client
from ledger import OPEN, Entry, Ledger
from packing import BUILD, LIMIT, BuildError, Kernel, build, slugify
from runtime import digest_of

AT_ONCE = 2  # GPU sessions of an account
ROUNDS = 8  # sessions that continue one another
FETCHES = 3


class Driver:
    """How the sessions of a job are built and pushed."""

    def __init__(self, owner: str, kind: str, options: dict, dirty: bool, poll: float, retry: bool):
        self.owner, self.kind, self.options, self.dirty = owner, kind, options, dirty
        self.poll, self.retry, self.client = poll, retry, Client()

    def build(self, entry: Entry) -> tuple[str, Path]:
        """The kernel's id and folder. Its name has a tail of its own: its status tells whether this push arrived."""
        asked = json.dumps([entry.settings, entry.sources, entry.part, entry.round, time.time_ns()], sort_keys=True)
        tail = hashlib.sha256(asked.encode()).hexdigest()[:6]
        title = f"carvana {slugify(entry.job).replace('-', ' ')[:24].strip()} {slugify(entry.part).replace('-', ' ')}"
        kernel = Kernel(
            self.kind, f"{title[:42].strip()} {tail}", self.owner, entry.settings,
            sources=tuple(entry.sources), **self.options,
        )  # fmt: skip
        return kernel.id, build(kernel, BUILD, self.dirty)


def drive(ledger: Ledger, job: str, driver: Driver) -> None:
    """Pushes, waits and fetches until all parts of the job are done. Raises BuildError if one has failed."""
    if driver.retry:
        for entry in ledger.last_rounds(job):
            if entry.state == "failed":
                entry.state, entry.kernel, entry.faults = "planned", "", []
    while True:
        running = look(ledger.entries, ledger, driver.client)
        for entry in ledger.of(job):
            if entry.state == "complete":
                take(entry, ledger, driver.client)
        for entry in ledger.of(job):
            if entry.state == "planned" and running < AT_ONCE:
                running += send(entry, ledger, driver)
        if not any(entry.state in (*OPEN, "complete") for entry in ledger.of(job)):
            break
        time.sleep(driver.poll)
    failed = [entry for entry in ledger.last_rounds(job) if entry.state == "failed"]
    if failed:
        told = "; ".join(f"{entry.name}: {', '.join(entry.faults)}" for entry in failed)
        raise BuildError(f"{told}. Logs are in {output_of(failed[0])}; --retry pushes it again")


def send(entry: Entry, ledger: Ledger, driver: Driver) -> int:
    """Builds and pushes a session; 1 if it runs now. It is noted before: a cut connection may have carried it."""
    entry.kernel, folder = driver.build(entry)
    entry.state = "pushing"
    ledger.save()
    try:
        driver.client.push(folder)
    except Brief as error:
        print(f"{entry.name}: {error}; whether it arrived will be seen", file=sys.stderr, flush=True)
        return 1
    except (Busy, BuildError) as error:
        entry.state, entry.kernel = "planned", ""
        ledger.save()
        if isinstance(error, BuildError):
            raise
        print(f"{entry.name}: Kaggle is busy with other sessions of yours, waiting", flush=True)
        return AT_ONCE
    entry.state = "running"
    ledger.save()
    size = next(path.stat().st_size for path in folder.glob(f"{folder.name}.*"))
    print(f"{entry.name}: pushed as {entry.kernel} ({size:,} of {LIMIT:,} bytes)", flush=True)
    return 1


def look(entries: list[Entry], ledger: Ledger, client: Client) -> int:
    """Asks Kaggle about what was pushed; how many of these still run."""
    running = 0
    for entry in entries:
        if entry.state not in ("pushing", "running"):
            continue
        there = client.status(entry.kernel)
        if entry.state == "pushing" and there == "unknown":
            entry.state, entry.kernel = "planned", ""  # it never arrived
        elif there in ("QUEUED", "RUNNING", "NEW_SCRIPT") or there.startswith("CANCEL_REQ"):
            entry.state = "running"
            running += 1
        elif there == "unknown":
            print(f"{entry.kernel}: Kaggle does not show it (yet); if it was deleted, edit {ledger.path}", flush=True)
            running += 1
        else:
            entry.state = "complete"
            if there != "COMPLETE":
                entry.faults = [f"{entry.kernel} ended with {there}"]
            print(f"{entry.name}: {there.lower()}", flush=True)
        ledger.save()
    return running


def take(entry: Entry, ledger: Ledger, client: Client) -> None:
    """Fetches a session's output whole; plans another round if its hours were over."""
    folder, told = output_of(entry), None
    for _ in range(FETCHES):
        client.fetch(entry.kernel, folder)
        told = read_status(folder)
        if told and not damaged(folder, told):
            break
    if told is None:
        entry.faults.append("it left no status.json")
    elif cut := damaged(folder, told):
        entry.faults.append(f"{cut[0]} does not arrive whole")
    else:
        entry.finished = told["finished"]
        entry.faults += told["faults"]
    if entry.faults:
        entry.state = "failed"
    else:
        entry.state = "done"
        if not entry.finished:
            if entry.round == ROUNDS:
                raise BuildError(f"{entry.name}: not finished after {ROUNDS} sessions; see {folder}")
            sources = [*dict.fromkeys([*entry.sources, entry.kernel])]
            ledger.entries.append(Entry(entry.job, entry.part, entry.settings, sources, round=entry.round + 1))
    ledger.save()


def read_status(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None


def damaged(folder: Path, told: dict) -> list[str]:
    """Files of the kernel's list that are not here as it wrote them."""
    return [
        name for name, digest in told["files"].items()
        if not (folder / name).is_file() or digest_of(folder / name) != digest
    ]  # fmt: skip


def output_of(entry: Entry) -> Path:
    """Where a session's output is fetched to."""
    return BUILD / "output" / entry.kernel.rpartition("/")[2]
