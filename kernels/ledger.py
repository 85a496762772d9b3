"""What was pushed to Kaggle, in a small file: an interrupted command knows it when it is given again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from packing import BuildError, write_whole

OPEN = ("planned", "pushing", "running")


@dataclass
class Entry:
    """One session on Kaggle.

    `state`: planned, pushing (it may have arrived), running, complete (not fetched yet), done or failed.
    `job` is what the session is one of, such as `train unet_lite0`; `part` is its share, such as `folds 0-1`.
    """

    job: str
    part: str
    settings: dict
    sources: list[str]
    state: str = "planned"
    kernel: str = ""  # owner/slug once it is built
    round: int = 1  # more when hours were over and another session continues
    finished: bool = False  # whether the kernel says that all its work is done
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.job}, {self.part}" + (f", round {self.round}" if self.round > 1 else "")


class Ledger:
    """All sessions, in the order in which they were planned; written at every change."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content = json.loads(path.read_text()) if path.exists() else {"sessions": [], "submissions": {}}
            self.entries = [Entry(**entry) for entry in self.content["sessions"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BuildError(f"{path}: not readable ({error}); move it away to begin anew") from None

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.content["sessions"] = [asdict(entry) for entry in self.entries]
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    def of(self, job: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.job == job]

    def last_rounds(self, job: str) -> list[Entry]:
        """For each part of a job the session that was planned last."""
        return list({entry.part: entry for entry in self.of(job)}.values())

    def plan(self, entry: Entry) -> None:
        """Adds a session unless its job has that part already. Raises BuildError if it has it with other settings."""
        for there in self.of(entry.job):
            if there.part == entry.part:
                if there.settings != entry.settings:
                    raise BuildError(
                        f"{there.name}: was begun with other settings ({there.settings}); give those, or --name another"
                    )
                return
        self.entries.append(entry)
        self.save()
