import ctypes
import json
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
import typer
from conftest import SRC
from packing import commit_of

from carvana import provenance
from carvana.command import command_line, format_duration, parse_duration, parse_size, run
from carvana.errors import InputError, few
from carvana.log import read_records, replacing, write_records

MENDABLE = {  # by its line
    "x.jpg: truncated\n": InputError("x.jpg: truncated"),
    "x.jpg: cut\n": InputError("Caught InputError in worker 0.\ncarvana.errors.InputError: x.jpg: cut\n"),
    "[Errno 28] No space left on device: 'runs/x'\n": OSError(28, "No space left on device", "runs/x"),
    "out of memory: give a smaller --batch-size": torch.OutOfMemoryError("CUDA out of memory."),
    "out of memory: give a smaller --batch": RuntimeError(
        "FIND was unable to find an engine to execute this computation"
    ),
    "no shared memory is left: --set data.num_workers=0": RuntimeError(
        "unable to allocate shared memory(shm) for file"
    ),
    "too many files are open: ulimit -n 4096": RuntimeError("received 0 items of ancdata"),
    "too many files are open: ulimit -n": RuntimeError("unable to open shared memory object: Too many open files (24)"),
    "torch.compile has no compiler: apt install g++": RuntimeError(
        "InvalidCxxCompiler: No working C++ compiler found in"
    ),
    "a loader was killed": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
}


@pytest.mark.parametrize("line", MENDABLE)
def test_what_the_user_can_mend_ends_in_a_line_and_a_bug_in_a_traceback(line, monkeypatch, capsys):
    def main(error: Exception = MENDABLE[line]) -> None:
        raise error

    app = typer.Typer()
    app.command("fail")(lambda: main()), app.command("bug")(lambda: main(RuntimeError("a bug")))
    for script, words in ((lambda: main(), ["script"]), (app, ["script", "fail"])):
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as end:
            run(script)
        text = capsys.readouterr().err
        assert (end.value.code, text.count("\n"), text.startswith(f"error: {line}")) == (2, 1, True)
    monkeypatch.setattr("sys.argv", ["script", "bug"])
    with pytest.raises(RuntimeError, match="a bug"):
        run(app)


def test_sizes_are_parsed_and_few_names_are_listed(monkeypatch):
    assert parse_size("1280x1918") == (1280, 1918)
    for wrong in ("1280", "0x5", "axb", "1280 x 1918"):
        with pytest.raises(InputError, match=r"give HEIGHTxWIDTH"):
            parse_size(wrong)
    assert [few(["a", "b"]), few(list("abcdefgh"))] == ["a, b", "a, b, c, d, e and 3 more"]
    monkeypatch.setattr("sys.argv", ["src/script.py", "a b"])
    assert command_line() == "script.py 'a b'"


def test_durations_are_parsed_and_written_as_they_are_given():
    seconds = {"30m": 1800, "11h": 39600, "1h30m": 5400, "1m30s": 90, "2h5s": 7205, "1m0.5s": 60.5}
    assert {text: parse_duration(text) for text in seconds} == seconds
    assert [format_duration(number) for number in seconds.values()] == list(seconds)
    assert (parse_duration("0.5h"), parse_duration("90s"), format_duration(0)) == (1800, 90, "0s")
    assert format_duration(parse_duration("1.1h")) == "1h6m"
    for wrong in ("30", "", "0m", "m", "30m1h", "-5m", "1 h"):
        with pytest.raises(InputError, match=f"--budget {wrong}: give a time such as 30m, 11h, 1h30m or 90s"):
            parse_duration(wrong)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path, records = tmp_path / "folder" / "log.jsonl", [{"epoch": 1, "dice": 0.5}, {"epoch": 2, "dice": 0.75}]

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_text("second")
            raise RuntimeError("broken off")

    assert read_records(path) == []
    write_records(path, records)
    with pytest.raises(RuntimeError, match="broken off"):
        break_off()
    assert (read_records(path), list(path.parent.iterdir())) == (records, [path])


FRESH = """
import json, os, resource, runpy, sys

def faults():
    for step in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [b"x" * 32_000_000 for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

os.environ["GOMP_SPINCOUNT"] = "7"
os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
environment, page_faults, helped, scripts = dict(os.environ), [faults()], 0, sys.argv[1:]
import carvana.command
assert environment == dict(os.environ)
carvana.command.set_up()
added = dict(os.environ.items() - environment.items())
page_faults.append(faults())
for script in scripts:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        helped += end.code == 0
print(json.dumps([added, page_faults, helped, list(sys.modules)]))
"""


def test_set_up_keeps_memory_and_what_the_user_has_set_and_help_loads_no_large_library():
    command = [sys.executable, "-c", FRESH, *map(str, scripts := sorted(SRC.glob("*.py")))]
    result = subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=True)
    added, page_faults, helped, modules = json.loads(result.stdout.splitlines()[-1])
    assert (added, helped) == ({"NO_ALBUMENTATIONS_UPDATE": "1"}, len(scripts))
    large = {"torch", "timm", "accelerate", "albumentations", "cv2", "numpy", "pandas", "PIL", "sklearn", "pydantic"}
    assert not large & set(modules)
    if hasattr(ctypes.CDLL(None), "mallopt"):  # glibc's allocator
        assert page_faults[1] < page_faults[0] / 10


@pytest.mark.parametrize(("changed", "mark"), [("", ""), (" M train.py\n", "-dirty")])
def test_a_commit_is_marked_if_tracked_code_differs_from_it(changed, mark, monkeypatch):
    answers = [subprocess.CompletedProcess("git", 0, stdout=text) for text in (changed, "c0ffee\n")]
    monkeypatch.setattr(provenance.subprocess, "run", Mock(side_effect=answers))
    assert provenance.git_commit.__wrapped__() == f"c0ffee{mark}"


def test_a_commit_that_git_does_not_tell_is_unknown_for_its_reason(monkeypatch, capsys):
    stderr = "fatal: detected dubious ownership\n\n\tgit config --global --add safe.directory /x\n"
    refusal = Mock(side_effect=subprocess.CalledProcessError(128, "git", stderr=stderr))
    monkeypatch.setattr(provenance.subprocess, "run", refusal)
    assert provenance.git_commit.__wrapped__() == "unknown"
    line = "unknown (fatal: detected dubious ownership git config --global --add safe.directory /x)\n"
    assert capsys.readouterr().err.endswith(line)
    with pytest.raises(InputError, match=r"git names no commit .*safe\.directory /x"):
        commit_of(dirty=False)
