"""The logs of running sessions, printed while the launcher waits: a process of Kaggle's client for each."""

import subprocess
import sys
import threading
from collections.abc import Iterable

from ledger import Entry

TOO_OLD = 2  # exit status of a client that knows no --follow
LAST_LINES = 10  # seconds that they may take after the session's end


class LogStreams:
    """Follows each session from the first `follow` that sees it run until it ends."""

    def __init__(self, wanted: bool):
        self.wanted, self.streams = wanted, {}

    def close(self) -> None:
        for stream in self.streams.values():
            stream.end()

    def follow(self, entries: Iterable[Entry]) -> None:
        running = {entry.kernel: entry.name for entry in entries if entry.state == "running" and self.wanted}
        for kernel in self.streams.keys() - running.keys():
            self.streams.pop(kernel).end(LAST_LINES)
        for kernel, name in running.items():
            stream = self.streams.setdefault(kernel, LogStream(kernel, name))
            if stream.process is None or stream.process.poll() not in (None, TOO_OLD):
                stream.start()


class LogStream:
    """Lines of a session, each after its name. A stream that broke off is begun again where it was."""

    def __init__(self, kernel: str, name: str):
        self.command = [sys.executable, "-m", "kaggle", "kernels", "logs", kernel, "--follow"]
        self.name, self.printed, self.process = name, 0, None

    def start(self) -> None:
        """In a session of its own: an interrupt is for the launcher, which ends the process."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, text=True, errors="replace", start_new_session=True, **pipes)
        self.reader = threading.Thread(target=self._print_lines, args=(self.process,), daemon=True)
        self.reader.start()

    def _print_lines(self, process: subprocess.Popen) -> None:
        for number, line in enumerate(process.stdout, start=1):
            if number > self.printed:  # Kaggle sends each stream from the first line on
                print(f"[{self.name}] {line}", end="", flush=True)
                self.printed = number

    def end(self, seconds: float = 0) -> None:
        self.reader.join(seconds)
        self.process.terminate()
