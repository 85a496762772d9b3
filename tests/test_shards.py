"""Shards, blocks and processes give the bytes of one uninterrupted command; a folder of another one is refused."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from conftest import SRC, TINY

import make_submission
import merge_submissions
from carvana.blocks import Blocks
from carvana.checkpoint import load_checkpoint, save_checkpoint
from carvana.choice import Choice, write_ensemble
from carvana.config import Config, parse_config
from carvana.dataset import to_tensor
from carvana.device import Device
from carvana.errors import InputError
from carvana.images import Photos, open_test
from carvana.job import check_size
from carvana.models import Segmenter, build_model
from carvana.postprocess import PostProcess
from carvana.provenance import file_digest
from carvana.rle import rle_decode
from carvana.shards import Shard, cut_shard, manifest_path, parse_shard, read_manifest
from carvana.submission import read_submission

EXPERIMENTS = ["small", "wide"]
OPTIONS = {"threshold": 0.5, "batch_size": 2, "num_workers": 0, "block_size": 3}  # 16 photos, blocks of 4


def varied_model(config: Config, photos: Photos) -> Segmenter:
    """An untrained model whose masks have edges: its norms know the photos, and half of a map is above 0."""
    model = build_model(config.model)
    fitted = [photos.fitted(image_id, [config.data.geometry])[0][0] for image_id in photos.image_ids]
    images = torch.stack([to_tensor(image) for image in fitted])
    with torch.no_grad():
        for _ in range(30):
            model.train()(images)
        logits = model.eval()(images)
        weight, bias = [*model.parameters()][-2:]
        weight *= 4 / logits.std()
        bias += -model(images).median()
    return model


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory) -> Path:
    """Two folds of one experiment and one of another, of another size, none trained."""
    photos = open_test(demo / "input")
    root = tmp_path_factory.mktemp("runs")
    for name, size, folds in (("small", [32, 48], 2), ("wide", [32, 64], 1)):
        config = parse_config(TINY | {"name": name, "data": {"size": size}}, name)
        for fold in range(folds):
            torch.manual_seed(fold)
            path = root / name / f"fold{fold}" / "best.safetensors"
            save_checkpoint(path, varied_model(config, photos), config, fold, 1, 0.5, "digest")
    return root


@pytest.fixture
def predict(demo, runs):
    """make_submission.main with these checkpoints, in this process."""

    def call(output: Path, experiments: list[str] = EXPERIMENTS, **options) -> bytes:
        options = {"runs": runs} | OPTIONS | options
        make_submission.main(experiments, output, input_root=demo / "input", **options)
        return output.read_bytes()

    return call


@pytest.fixture(scope="module")
def whole(demo, runs, tmp_path_factory) -> bytes:
    """The CSV of one uninterrupted command."""
    output = tmp_path_factory.mktemp("whole") / "x.csv"
    make_submission.main(EXPERIMENTS, output, input_root=demo / "input", runs=runs, **OPTIONS)
    assert_tidy(output)
    return output.read_bytes()


class Killed(BaseException):
    """What no `except` of the code catches, as a kill is."""


def assert_tidy(output: Path) -> None:
    """Nothing is beside the output but its manifest."""
    assert sorted(os.listdir(output.parent)) == [output.name, f"{output.name}.json"]
    assert read_manifest(manifest_path(output)).digest == file_digest(output)


@pytest.mark.parametrize(("i", "n", "photos", "batch", "places"), [
    (1, 1, 16, 4, range(16)), (1, 3, 16, 2, range(4)), (2, 3, 16, 2, range(4, 10)), (3, 3, 16, 2, range(10, 16)),
    (2, 2, 7, 4, range(4, 7)), (2, 2, 100064, 8, range(50032, 100064)),
])  # fmt: skip
def test_shards_are_neighbours_in_whole_batches(i, n, photos, batch, places):
    assert cut_shard(Shard(i, n), photos, batch) == places


@pytest.mark.parametrize("n", [1, 2, 3, 7, 25])
def test_shards_cover_all_photos_once(n):
    shards = [cut_shard(Shard(i, n), 99, 4) for i in range(1, n + 1)]
    assert [place for shard in shards for place in shard] == list(range(99))


def test_more_shards_than_batches_are_refused():
    with pytest.raises(InputError, match="16 photos are only 4 batches of 4"):
        cut_shard(Shard(1, 5), 16, 4)


def test_a_shard_is_written_from_one():
    assert str(parse_shard("2/3")) == "2/3"
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3"):
        with pytest.raises(InputError, match="give i/n"):
            parse_shard(wrong)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_merged_shards_are_the_whole(predict, whole, demo, tmp_path, suffix):
    parts = [tmp_path / f"part-{i}{suffix}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        predict(part, shard=f"{i}/3")
        assert not (tmp_path / f"{part.name}.parts").exists()
    assert [read_manifest(manifest_path(part)).photos for part in parts] == [4, 6, 6]
    merge_submissions.main(parts[::-1], tmp_path / "merged.csv", input_root=demo / "input")
    assert (tmp_path / "merged.csv").read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 8  # each file has its manifest


def test_block_and_batch_size_change_no_photo(predict, whole, tmp_path):
    rows = dict(line.split(",") for line in whole.decode().splitlines())
    assert predict(tmp_path / "x.csv", block_size=100, num_workers=1) == whole
    for line in predict(tmp_path / "x.csv", batch_size=5).decode().splitlines():
        name, rle = line.split(",")
        assert len(rle) == pytest.approx(len(rows[name]), rel=0.02)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("moment", range(1, 9))  # manifest, four blocks, the joined file, the output, its manifest
def test_a_killed_command_continues_to_the_same_bytes(predict, whole, tmp_path, monkeypatch, moment, after):
    output, replace, calls = tmp_path / "x.csv", os.replace, []

    def kill(source, target):
        calls.append(target)
        if len(calls) < moment or after:
            replace(source, target)
        if len(calls) == moment:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill)
        with pytest.raises(Killed):
            predict(output)
    assert output.exists() == (moment + after > 7)
    kept = len(list(tmp_path.glob("x.csv.parts/block-*.csv")))
    assert kept == min(max(moment - 1 - (not after), 0), 4)
    written = []
    monkeypatch.setattr(Blocks, "write", lambda *call, write=Blocks.write: (written.append(call), write(*call)))
    assert predict(output) == whole
    assert len(written) == 4 - kept
    assert_tidy(output)


def test_a_command_killed_while_it_tidies_up(predict, whole, tmp_path, monkeypatch):
    def remove_half(folder, ignore_errors):
        (folder / "manifest.json").unlink()
        (folder / "block-00001.csv").unlink()
        raise Killed

    output = tmp_path / "x.csv"
    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "check", lambda self: None)
        patch.setattr("shutil.rmtree", remove_half)
        with pytest.raises(Killed):
            predict(output)
    assert predict(output) == whole
    assert_tidy(output)


KILL = """
import os, sys
import make_submission
from carvana.command import run
replace = os.replace
def kill(source, target):
    if "block-00002" in str(target):
        os._exit(9)
    replace(source, target)
os.replace = kill
run(make_submission.main)
"""


def command(demo, runs, output) -> list[str]:
    options = ["--input", demo / "input", "--runs", runs, "--output", output, "--num-workers", 1]
    options += ["--threshold", 0.5, "--batch-size", 2, "--block-size", 3]
    return [*EXPERIMENTS, *map(str, options)]


def test_a_dead_process_leaves_what_another_continues(predict, whole, demo, runs, tmp_path):
    output = tmp_path / "x.csv"
    dead = subprocess.run([sys.executable, "-c", KILL, *command(demo, runs, output)], cwd=SRC, timeout=200)
    assert dead.returncode == 9
    names = os.listdir(tmp_path / "x.csv.parts")
    assert len([name for name in names if name.startswith("block-")]) == 2
    assert len([name for name in names if name.endswith(".tmp")]) == 1
    assert_same_rows(predict(output), whole)
    assert_tidy(output)


RANDOM_KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import make_submission
from carvana.command import run

def predict(output):
    child = os.fork()  # torch is imported, but has computed nothing yet: there are no threads to lose
    if child == 0:
        sys.argv[sys.argv.index("--output") + 1] = str(output)
        try:
            run(make_submission.main)
        finally:
            os._exit(0)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

folder, draw, kills, number = Path(sys.argv[sys.argv.index("--output") + 1]), random.Random(0), 0, 0
started = time.monotonic()
wait(predict(folder / "whole.csv"))
seconds, whole = time.monotonic() - started, (folder / "whole.csv").read_bytes()
while kills < 20:
    output = folder / f"{number}.csv"
    child = predict(output)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    kills += wait(child) == -signal.SIGKILL
    if output.exists():
        assert output.read_bytes() == whole
        number += 1
output = folder / "last.csv" if output.exists() else output
wait(predict(output))
assert output.read_bytes() == whole
print("outputs", number + 1)
"""


def test_kills_at_random_moments_lose_and_change_nothing(demo, runs, tmp_path):
    """kill -9, twenty times: what is there under the output's name is always the whole and right file."""
    script = [sys.executable, "-c", RANDOM_KILLS, *command(demo, runs, tmp_path)]
    done = subprocess.run(script, cwd=SRC, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(r"outputs \d+$", done.stdout)
    assert not list(tmp_path.glob("*.parts"))


def test_a_full_disk_ends_in_one_line_and_loses_nothing(demo, runs, whole, tmp_path):
    output = tmp_path / "x.csv"
    script = [sys.executable, str(SRC / "make_submission.py"), *command(demo, runs, output)]
    limit = len(whole) // 2  # a block is smaller, the joined file is not
    full = subprocess.run(
        script, capture_output=True, text=True, timeout=280,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert full.returncode == 2
    assert re.fullmatch(r"error: .*File too large.*", full.stderr.strip().splitlines()[-1])
    assert "Traceback" not in full.stderr
    assert not output.exists()
    again = subprocess.run(script, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    assert_same_rows(output.read_bytes(), whole)
    assert_tidy(output)


def test_a_corrupt_checkpoint_is_named_and_nothing_is_written(predict, runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    path = tmp_path / "runs" / "small" / "fold1" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"fold1/best\.safetensors: not a readable checkpoint"):
        predict(tmp_path / "x.csv", runs=tmp_path / "runs")
    assert [file.name for file in tmp_path.iterdir()] == ["runs"]


def test_two_processes_are_one(whole, demo, runs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    output = tmp_path / "x.csv"
    script = [str(SRC / "make_submission.py"), *command(demo, runs, output)]
    done = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 rows, checked") == 1
    assert_same_rows(output.read_bytes(), whole)
    assert_tidy(output)


def assert_same_rows(csv: bytes, whole: bytes) -> None:
    """Other processes may use another number of threads, which may round a probability to the other side."""
    for ours, theirs in zip(csv.decode().splitlines(), whole.decode().splitlines(), strict=True):
        assert ours.partition(",")[0] == theirs.partition(",")[0]
        assert len(ours) == pytest.approx(len(theirs), rel=0.02)


def test_hours_stop_between_blocks_with_status_three(predict, whole, tmp_path, capsys):
    output = tmp_path / "x.csv"
    for blocks in (1, 2, 3):
        with pytest.raises(typer.Exit) as end:
            predict(output, hours=0)
        assert end.value.exit_code == 3
        assert not output.exists()
        told = capsys.readouterr().err
        assert f"stopped before it is whole, {blocks} of 4 blocks are in {output}.parts; give the same command" in told
    assert predict(output, hours=0) == whole
    assert_tidy(output)


@pytest.fixture
def begun(predict, tmp_path):
    """An output of which one block is there."""
    with pytest.raises(typer.Exit):
        predict(tmp_path / "x.csv", hours=0)
    return tmp_path / "x.csv"


@pytest.mark.parametrize(("options", "difference"), [
    ({"threshold": 0.4}, "threshold 0.5 instead of 0.4"),
    ({"tta": "none"}, "views identity,hflip instead of identity"),
    ({"experiments": ["small"]}, "other checkpoints"),
    ({"shard": "1/2"}, "shard 1/1 instead of 1/2"),
    ({"batch_size": 4}, "batch size 2 instead of 4"),
    ({"block_size": 8}, "block size 4 instead of 8"),
])  # fmt: skip
def test_blocks_of_another_prediction_are_refused(predict, begun, options, difference):
    with pytest.raises(InputError, match=re.escape(difference)) as error:
        predict(begun, **options)
    assert "--overwrite" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(list(begun.parent.glob("x.csv.parts/block-*"))) == 1


def test_overwrite_starts_anew(predict, begun, tmp_path):
    fresh = predict(tmp_path / "fresh" / "x.csv", threshold=0.4)
    assert predict(begun, threshold=0.4, overwrite=True) == fresh
    assert not begun.with_name("x.csv.parts").exists()


def test_a_folder_of_something_else_is_left_alone(predict, tmp_path):
    (tmp_path / "x.csv.parts").mkdir()
    (tmp_path / "x.csv.parts" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match=r"x\.csv\.parts: holds diary\.txt"):
        predict(tmp_path / "x.csv")
    assert (tmp_path / "x.csv.parts" / "diary.txt").exists()


def test_a_damaged_block_is_named(predict, begun, whole):
    block = begun.with_name("x.csv.parts") / "block-00000.csv"
    text = block.read_text()
    block.write_text(text[: text.rindex("\n", 0, -1) + 1])
    with pytest.raises(InputError, match=r"block-00000\.csv: damaged; remove it"):
        predict(begun)
    block.unlink()
    assert predict(begun) == whole


def test_a_failure_before_the_first_block_leaves_nothing(predict, tmp_path, monkeypatch):
    monkeypatch.setattr("carvana.job.check_size", lambda *_: (_ for _ in ()).throw(InputError("x")))
    with pytest.raises(InputError):
        predict(tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []


def test_photos_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"b_01\.jpg: photos of different sizes"):
        check_size("b_01.jpg", (4, 6), (4, 8))


def test_a_submission_that_fails_its_check_does_not_appear(predict, tmp_path, monkeypatch):
    monkeypatch.setattr("carvana.blocks.find_faults", lambda *_: (["a fault"], []))
    with pytest.raises(InputError, match="failed its own check"):
        predict(tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_estimate_prints_figures_and_writes_nothing(demo, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = OPTIONS | {"threshold": None}  # the experiments need no evaluation yet
    make_submission.main(["small"], estimate=True, input_root=demo / "input", runs=runs, **options)
    out = capsys.readouterr().out
    for figure in (
        r"[\d.]+ photos a second, measured on 14\n", r"[\d.]+ hours for 16 photos on this device",
        r"peak memory \d+ MiB",
        r"CSV 0\.000 GB, compressed 0\.000 GB", r"1 shards of at most 11\.5 hours",
    ):  # fmt: skip
        assert re.search(figure, out), out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("output", "fault"), [(None, "--output: missing"), (Path("x.txt"), "must end in")])
def test_the_output_is_checked_first(output, fault):
    with pytest.raises(InputError, match=fault):
        make_submission.main(["nonesuch"], output, input_root=Path("nowhere"))


def test_an_ensembles_file_decides_all(demo, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(make_submission, "local_device", lambda: Device(torch.device("cpu")))  # float32: exact
    paths = {name: runs / name / "fold0" / "best.safetensors" for name in ("small", "wide")}
    choice = Choice(
        experiments={"small": 0.25, "wide": 0.75}, views=("identity", "hflip"), mean="logits", threshold=0.45,
        postprocess=PostProcess(holes=200, parts=300),
    )  # fmt: skip
    write_ensemble(tmp_path / "ensemble.json", choice, {0: paths}, {})
    output = tmp_path / "x.csv"
    where = {"input_root": demo / "input", "runs": runs, "num_workers": 0}
    make_submission.main(None, output, ensemble=tmp_path / "ensemble.json", **where)
    photos, checkpoints = open_test(demo / "input"), {name: load_checkpoint(path) for name, path in paths.items()}
    mended = 0
    for name, rle in read_submission(output):
        probs = 0
        for experiment, checkpoint in checkpoints.items():
            fit, model = checkpoint.config.data.geometry, checkpoint.model
            (photo,), size = photos.fitted(name.removesuffix(".jpg"), [fit])
            image = to_tensor(photo)[None]
            with torch.inference_mode():
                logits = (model(image) + model(image.flip(-1)).flip(-1)) / 2
            probs = probs + choice.experiments[experiment] * fit.undo(logits.sigmoid(), size)
        mask = (probs[0, 0] >= 0.45).numpy()
        mended += (choice.postprocess(mask) != mask).sum()
        assert (rle_decode(rle, mask.shape) != choice.postprocess(mask)).mean() < 0.001
    assert mended > 0


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"experiments": None}, "give names of experiments, or --ensemble"),
        ({"experiments": ["small"], "ensemble": Path("x.json")}, "one of the two"),
        ({"experiments": None, "ensemble": Path("x.json"), "tta": "none"}, "x.json holds views and threshold"),
    ],
)
def test_either_experiments_or_an_ensembles_file(given, fault, tmp_path):
    with pytest.raises(InputError, match=fault):
        make_submission.main(output=tmp_path / "x.csv", **given)
