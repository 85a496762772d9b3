"""What was pushed to Kaggle, kept in a small file, so that an interrupted command can be given again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from carvana.errors import InputError
from carvana.log import write_json


@dataclass
class Entry:
    """One session on Kaggle.

    `state`: planned, pushing (it may have arrived), running, complete (not fetched yet), done or failed.
    `job` is what the session belongs to, such as `train unet_lite0`; `part` is its share, such as `folds 0 1`.
    """

    job: str
    part: str
    settings: dict
    sources: list[str]
    state: str = "planned"
    kernel: str = ""  # owner/slug once it is built
    round: int = 1  # more when hours were over and another session continues
    faults: list[str] = field(default_factory=list)
    failed_kernels: list[str] = field(default_factory=list)  # of earlier attempts, attached like the sources

    @property
    def name(self) -> str:
        return f"{self.job}, {self.part}" + (f", round {self.round}" if self.round > 1 else "")

    def replan(self) -> None:
        """Forgets the last push: the session is to be pushed again, with what a failed one has left."""
        self.failed_kernels += [self.kernel] if self.state == "failed" else []
        self.state, self.kernel, self.faults = "planned", "", []


class Ledger:
    """All sessions, in the order in which they were planned; written at every change."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content = json.loads(path.read_text()) if path.exists() else {"sessions": [], "submissions": {}}
            self.entries = [Entry(**entry) for entry in self.content["sessions"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: not readable ({error}); move it away to begin anew") from None

    def save(self) -> None:
        self.content["sessions"] = [asdict(entry) for entry in self.entries]
        write_json(self.path, self.content)

    def of(self, job: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.job == job]

    def last_rounds(self, job: str) -> list[Entry]:
        """For each part of a job the session that was planned last."""
        return list({entry.part: entry for entry in self.of(job)}.values())

    def training_of(self, job: str) -> list[Entry]:
        """The sessions that trained what a job predicts with."""
        sources = {source for entry in self.of(job) for source in entry.sources}
        return [entry for entry in self.entries if entry.kernel in sources and entry.job.startswith("train ")]

    def plan(self, entry: Entry) -> None:
        """Adds a session unless its job has that part already. Raises InputError if it has it with other settings."""
        earlier = next((known for known in self.of(entry.job) if known.part == entry.part), None)
        if earlier is None:
            self.entries.append(entry)
            self.save()
        elif earlier.settings != entry.settings:
            raise InputError(f"{entry.name}: was begun with other settings ({earlier.settings}); give those, or --name")
