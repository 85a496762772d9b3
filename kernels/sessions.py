"""Sessions on Kaggle: built, pushed, watched, continued, as many at once as an account may have."""

import hashlib
import json
import shutil
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from client import Busy, Client, NoHours, Transient
from ledger import Entry, Ledger
from logs import LogStreams
from outputs import fetch_output, output_of, read_status
from packing import BUILD, Kernel, build, slugify

from carvana.command import command_line
from carvana.errors import InputError

AT_ONCE = 2  # GPU sessions of an account


@dataclass(frozen=True)
class Driver:
    """How the sessions of a job are built, pushed (`run`, or only saved) and watched. `options` are those of Kernel."""

    owner: str
    kind: str
    options: dict
    dirty: bool
    poll: float  # seconds
    retry: bool
    logs: bool
    run: bool
    client: Client = field(default_factory=Client)

    def build(self, entry: Entry) -> tuple[str, Path]:
        """The kernel's id and folder. No other push has its name, so its status tells whether it arrived."""
        sources = (*entry.sources, *entry.failed_kernels)
        content = json.dumps([entry.settings, sources, entry.part, entry.round, time.time_ns()], sort_keys=True)
        tail = hashlib.sha256(content.encode()).hexdigest()[:6]
        title = f"carvana {slugify(entry.job).replace('-', ' ')[:24].strip()} {slugify(entry.part).replace('-', ' ')}"
        title = f"{title[:42].strip()} {tail}"
        settings = entry.settings | {"sources": [source.rpartition("/")[2] for source in entry.sources]}
        kernel = Kernel(self.kind, title, self.owner, settings, sources=sources, **self.options)
        return kernel.id, build(kernel, BUILD, self.dirty)

    def push(self, entry: Entry, folder: Path) -> None:
        self.client.push(folder, entry.kernel, self.options.get("accelerator", ""), self.run)

    def check_quota(self, refusal: str = "") -> None:
        """Says what is left of the week's GPU hours. Raises InputError if nothing is, or after Kaggle's refusal."""
        line, left, _ = self.client.quota()
        if refusal or left <= 0:
            raise InputError(f"{refusal} {line}; give then: python kernels/{command_line()}".strip())
        print(line, flush=True)


def drive(ledger: Ledger, job: str, driver: Driver) -> bool:
    """Pushes, waits and fetches until all parts of the job are done; False if kernels were only to be saved.

    Raises InputError if a part has failed, or if the week's GPU hours are used up.
    """
    for entry in ledger.last_rounds(job):
        if driver.retry and entry.state == "failed":
            entry.replan()
        if entry.state == "done" and read_status(output_of(entry)) is None:
            entry.state = "complete"  # what was fetched is not here any more
    ledger.save()
    if not driver.run:
        save_kernels(ledger, job, driver)
        return False
    asked = not driver.options.get("gpu", True)
    with closing(LogStreams(driver.logs)) as logs:
        while True:
            running = refresh(ledger, driver.client)
            for entry in ledger.of(job):
                if entry.state == "complete":
                    fetch_output(entry, ledger, driver.client)
            for entry in ledger.of(job):
                if entry.state == "planned" and running < AT_ONCE:
                    if not asked:
                        driver.check_quota()
                        asked = True
                    running += push(entry, ledger, driver)
            if all(entry.state in ("done", "failed") for entry in ledger.of(job)):
                break
            logs.follow(ledger.of(job))
            time.sleep(driver.poll)
    if failed := [entry for entry in ledger.last_rounds(job) if entry.state == "failed"]:
        faults = "; ".join(f"{entry.name}: {', '.join(entry.faults)}" for entry in failed)
        raise InputError(f"{faults}. Logs are in {output_of(failed[0])}; --retry pushes it again")
    return True


def save_kernels(ledger: Ledger, job: str, driver: Driver) -> None:
    """Saves on Kaggle what is planned, without running it. It stays planned: the next push makes another kernel."""
    for entry in ledger.of(job):
        if entry.state == "planned":
            entry.kernel, folder = driver.build(entry)
            driver.push(entry, folder)
            print(f"{entry.name}: saved, not run: https://www.kaggle.com/code/{entry.kernel}", flush=True)
            entry.replan()


def push(entry: Entry, ledger: Ledger, driver: Driver) -> int:
    """Builds and pushes a session; how many more sessions are taken to run now.

    The ledger is written before the push: if the connection is cut, the push may have arrived all the same.
    """
    entry.kernel, folder = driver.build(entry)
    entry.state = "pushing"
    ledger.save()
    try:
        driver.push(entry, folder)
    except Transient:
        raise
    except (Busy, InputError) as error:
        entry.replan()
        ledger.save()
        if isinstance(error, NoHours):
            driver.check_quota(refusal=str(error))
        if isinstance(error, InputError):
            raise
        shutil.rmtree(folder)  # it is built again under another name
        print(f"{entry.name}: Kaggle is busy with other sessions of yours, waiting", flush=True)
        return AT_ONCE
    entry.state = "running"
    ledger.save()
    print(f"{entry.name}: pushed as {entry.kernel}", flush=True)
    return 1


def refresh(ledger: Ledger, client: Client) -> int:
    """Asks Kaggle for the status of what was pushed; how many sessions still run."""
    running = 0
    for entry in ledger.entries:
        if entry.state not in ("pushing", "running"):
            continue
        status = client.status(entry.kernel)
        if entry.state == "pushing" and status == "unknown":
            entry.replan()  # it never arrived
        elif status in ("QUEUED", "RUNNING", "NEW_SCRIPT") or status.startswith("CANCEL_REQ"):
            entry.state = "running"
            running += 1
        elif status == "unknown":
            remedy = f"if it was deleted, edit {ledger.path}; if your token is no longer valid, make another"
            print(f"{entry.kernel}: Kaggle does not show it (yet); {remedy}", flush=True)
            running += 1
        else:
            entry.state = "complete"
            if status != "COMPLETE":
                entry.faults = [f"{entry.kernel} ended with {status}"]
            print(f"{entry.name}: {status.lower()}", flush=True)
        ledger.save()
    return running
