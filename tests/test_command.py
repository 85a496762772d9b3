import ctypes
import subprocess
import sys

import pytest
from conftest import SRC

from carvana.command import parse_size, run
from carvana.errors import InputError, few


def end_of(main, monkeypatch, capsys) -> tuple[int, str]:
    """Exit status and error output of a script with this `main`."""
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err


def raising(error: Exception):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("x.jpg: truncated"), "error: x.jpg: truncated\n"),
        (InputError("Caught InputError in worker 0.\ncarvana.errors.InputError: x.jpg: cut\n"), "error: x.jpg: cut\n"),
        (OSError(28, "No space left on device", "runs/x"), "error: [Errno 28] No space left on device: 'runs/x'\n"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_ends_in_a_line(error, line, monkeypatch, capsys):
    assert end_of(raising(error), monkeypatch, capsys) == (2, line)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(RuntimeError, match="a bug"):
        run(raising(RuntimeError("a bug")))


def test_lack_of_memory_ends_with_advice(monkeypatch, capsys):
    import torch

    status, text = end_of(raising(torch.OutOfMemoryError("CUDA out of memory.")), monkeypatch, capsys)
    assert (status, text.count("\n")) == (2, 1)
    assert "--batch-size" in text


def test_parse_size():
    assert parse_size("1280x1918") == (1280, 1918)
    for wrong in ("1280", "0x5", "axb", "1280 x 1918"):
        with pytest.raises(InputError, match=r"give HEIGHTxWIDTH"):
            parse_size(wrong)


def test_few_names_are_listed():
    assert few(["a", "b"]) == "a, b"
    assert few(list("abcdefgh")) == "a, b, c, d, e and 3 more"


STEPS = """
import resource, torch
from carvana.command import keep_memory
{call}
model = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
images = torch.rand(4, 16, 256, 384)
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(images).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator only")
def test_a_step_gets_its_memory_back_from_the_one_before():
    faults = []
    for call in ("", "keep_memory()"):
        command = [sys.executable, "-c", STEPS.format(call=call)]
        faults.append(int(subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=True).stdout))
    assert faults[1] < faults[0] / 10
