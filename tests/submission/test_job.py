"""`make_submission.py`: after a kill at any moment, in shards and on several devices it gives one command's rows."""

import os
import random
import re
import shutil
import signal
import threading
import time

import pytest
import torch
from conftest import full_disk, run_script
from PIL import Image
from tqdm import tqdm
from varied_runs import CPU, write_run

from carvana.data.images import open_test
from carvana.data.loader import Loading
from carvana.errors import InputError
from carvana.log import alone_in, read_records, write_json
from carvana.prediction.ensemble import Choice, write_ensemble
from carvana.prediction.postprocess import PostProcess
from carvana.provenance import file_digest
from carvana.submission.blocks import Blocks
from carvana.submission.choice import build_predictor, choose
from carvana.submission.csv import read_submission
from carvana.submission.job import match_sample, measure
from carvana.submission.journal import record_submission, render_table
from carvana.submission.manifest import manifest_path, read_manifest

FOLDERS = {"0": "fold0", "1": "fold1", "none": "none"}


@pytest.fixture(scope="module")
def where(demo, tmp_path_factory):
    """Options: drawn photos, and a fold of one experiment and two of another, of another size."""
    runs = tmp_path_factory.mktemp("runs")
    for name, size, folds in (("wide", [32, 64], 1), ("small", [32, 48], 2)):
        write_run(runs, name, size, folds, open_test(demo / "input"), all_cars=name == "small")
    return ["--input", demo / "input", "--runs", runs]


@pytest.fixture(scope="module")
def command(where):
    """It predicts 16 photos, in 4 blocks of 4, into the file that is given next; later options replace earlier ones."""
    options = ["--threshold", 0.5, "--batch-size", 2, "--block-size", 3, "--num-workers", 0]
    return ["make_submission.py", "wide", *where, *options, "--output"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The CSV of one uninterrupted command."""
    output = tmp_path_factory.mktemp("whole") / "x.csv"
    done = run_script(*command, output)
    assert "16 photos, 1 networks x 2 views, cpu" in done.stderr
    assert re.fullmatch(rf"{output}: 16 rows, checked; [\d.]+ photos a second, peak memory \d+ MiB\n", done.stdout)
    return output.read_bytes()


@pytest.fixture
def output(tmp_path):
    return tmp_path / "x.csv"


def count_blocks(output) -> int:
    return len(list(output.parent.glob(f"{output.name}.parts/block-*")))


@pytest.mark.parametrize("moment", range(9))
def test_a_command_killed_before_a_step_continues_to_the_same_bytes(command, output, whole, moment, monkeypatch):
    """Before the manifest, a block (1 to 4), the joined file, the output or its manifest appear, or while it tidies."""
    rename, renamed = os.replace, []

    def replace(source, target):
        if len(renamed) == moment:
            raise BaseException("killed")  # what no `except` of the code catches
        rename(source, renamed.append(target) or target)

    def remove(folder, ignore_errors):
        if folder.exists():
            (folder / "manifest.json").unlink()
            raise BaseException("killed")

    monkeypatch.setattr("os.replace", replace)
    monkeypatch.setattr("shutil.rmtree", remove)
    with pytest.raises(BaseException, match="killed"):
        run_script(*command, output)
    monkeypatch.undo()
    kept = min(max(moment - 1, 0), 4)
    assert (output.exists(), count_blocks(output)) == (moment > 6, kept)
    leftover = output.parent / "x.csv.parts" / ".block-00002.csv.99.tmp"  # as a real kill leaves one
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_text("img,rle_m")
    assert (f"{kept} of 4 blocks are there" in run_script(*command, output).stderr) == (1 < moment < 8)
    assert output.read_bytes() == whole
    assert sorted(os.listdir(output.parent)) == ["x.csv", "x.csv.json"]


def test_kills_at_random_moments_lose_and_change_nothing(command, tmp_path):
    """kill -9: a file under the output's name is always the whole and right one."""

    def start(output) -> int:
        if child := os.fork():
            return child
        torch.set_num_threads(1)  # the others do not survive a fork
        tqdm.set_lock(threading.RLock())  # that of all processes would stay locked by a killed one
        try:
            run_script(*command, output)
        finally:
            os._exit(0)

    os.waitpid(start(tmp_path / "whole.csv"), 0)
    draw, end, kills, number = random.Random(0), time.monotonic() + 600, 0, 0
    while number < 3 or kills < 4:
        output = tmp_path / f"{number}.csv"
        wanted, child = draw.randint(count_blocks(output) + 1, 5), start(output)  # of 5 there are never as many
        while count_blocks(output) < wanted and not output.exists() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert time.monotonic() < end
        if output.exists():
            assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
            number += 1


def test_a_full_disk_ends_in_one_line_and_loses_nothing(command, output, whole):
    with full_disk(len(whole) // 2):  # a block is smaller, the joined file not
        full = run_script(*command, output, check=False)
    assert (full.returncode, output.exists()) == (2, False)
    assert re.fullmatch(r"error: .*File too large.*", full.stderr.splitlines()[-1])
    assert "4 of 4 blocks are there already" in run_script(*command, output).stderr
    assert output.read_bytes() == whole


@pytest.fixture
def slow(command, monkeypatch):
    """The command with half an hour, on a clock on which each block takes an hour."""
    clock, write, written = time.monotonic, Blocks.write, []
    monkeypatch.setattr(Blocks, "write", lambda *block: written.append(write(*block)))
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600 * len(written))
    return [command[0], "--hours", 0.5, *command[1:]]


def test_hours_stop_between_blocks_with_status_three_and_the_same_command_continues(slow, output, whole):
    for blocks, options in ((0, ["--hours", 0]), (1, []), (2, []), (2, ["--hours", 0]), (3, [])):
        done = run_script(*slow, output, *options, check=False)
        assert (done.returncode, count_blocks(output), output.exists()) == (3, blocks, False)
        assert f"{output}: stopped before it is whole, {blocks} of 4 blocks are in {output}.parts; give" in done.stderr
    assert "3 of 4 blocks are there already" in run_script(*slow, output).stderr
    assert output.read_bytes() == whole


def test_blocks_of_another_prediction_are_refused_unless_overwritten(slow, command, output):
    run_script(*slow, output, check=False)
    for changes, difference in [
        (["--threshold", 0.4], "threshold 0.5 instead of 0.4"), (["--shard", "1/2"], "shard 1/1 instead of 1/2"),
        (["--block-size", 8], "block size 4 instead of 8"),
        (["--backend", "openvino"], "backend torch instead of openvino"), (["small"], "other checkpoints"),
    ]:  # fmt: skip
        done = run_script(*command, output, *changes, check=False)
        assert (done.returncode, done.stdout, count_blocks(output)) == (2, "", 1)
        words = rf"error: {output}\.parts: an unfinished prediction with {difference}: .*, or --overwrite to start anew"
        assert re.fullmatch(words, done.stderr.splitlines()[-1])
    assert "already" not in run_script(*command, output, "--threshold", 0.4, "--overwrite").stderr
    assert read_manifest(manifest_path(output)).threshold == 0.4
    refused = run_script(*command, output, check=False)
    assert (refused.returncode, read_manifest(manifest_path(output)).threshold) == (2, 0.4)
    assert f"{output}: finished, with threshold 0.4 instead of 0.5; remove it, or give another" in refused.stderr
    assert run_script(*slow, output, "--overwrite", check=False).returncode == 3
    assert "1 of 4 blocks are there already" in run_script(*command, output).stderr  # what was begun is continued
    assert read_manifest(manifest_path(output)).threshold == 0.5


def test_the_same_command_does_not_predict_again_what_is_there(command, output, whole):
    run_script(*command, output)
    before = os.stat(output).st_mtime_ns
    again = run_script(*command, output)
    assert again.stdout == f"{output}: 16 rows, checked; it was predicted before, --overwrite predicts it anew\n"
    assert (os.stat(output).st_mtime_ns, sorted(os.listdir(output.parent))) == (before, ["x.csv", "x.csv.json"])
    refused = run_script(*command, output, "--shard", "1/2", check=False)
    assert f"{output}: finished, with shard 1/1 instead of 1/2; remove it, or give another" in refused.stderr
    output.write_bytes(whole[:-9])  # not as it was written
    run_script(*command, output)
    assert output.read_bytes() == whole


def test_what_a_shard_has_left_is_not_lost_to_another_and_what_a_killed_one_has_left_is_removed(command, output):
    labels, unfinished = (output.with_name(name) for name in ("l.csv", ".l.csv.7.tmp"))
    unfinished.touch()
    run_script(*command, output, "--shard", "1/2", "--labels", labels)
    assert not unfinished.exists()
    other = [*command, output.with_name("y.csv"), "--shard", "2/2", "--labels", labels]
    refused = run_script(*other, check=False)
    assert (refused.returncode, read_manifest(manifest_path(labels)).shard) == (2, "1/2")
    assert "l.csv: finished, with shard 1/2 instead of 2/2; remove it, or give another name" in refused.stderr
    run_script(*other, "--overwrite")
    assert read_manifest(manifest_path(labels)).shard == "2/2"


def test_a_smaller_batch_continues(slow, command, output, whole):
    stopped = run_script(*slow, output, "--batch-size", 4, "--overwrite", check=False)
    assert "give the same command without --overwrite to continue" in stopped.stderr
    assert f"note: {output}.parts was begun with --batch-size 4" in run_script(*command, output).stderr
    assert_same_rows(output, whole)


def test_damaged_blocks_and_strange_files_are_named_and_other_code_may_continue(
    slow, command, output, whole, monkeypatch
):
    run_script(*slow, output, check=False)
    block, diary, other = (output.parent / name for name in ("x.csv.parts/block-00000.csv", "z.csv.parts/a", "y.csv"))
    block.write_text("".join(block.read_text().splitlines(keepends=True)[:-1]))
    assert "block-00000.csv: damaged; remove it" in run_script(*command, output, check=False).stderr
    block.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("carvana.submission.job.git_commit", lambda: "0123456789abcdef")
        assert f"note: {output}.parts was begun by other code, commit " in run_script(*command, output).stderr
    assert output.read_bytes() == whole
    diary.mkdir(parents=True)
    assert "z.csv.parts: holds a, which" in run_script(*command, output.with_name("z.csv"), check=False).stderr
    assert diary.exists()
    monkeypatch.setattr("carvana.submission.blocks.find_faults", lambda *_, **__: (["a fault"], []))
    assert "failed its own check" in run_script(*command, other, check=False).stderr
    assert not other.exists()


def assert_same_rows(output, expected: bytes) -> None:
    """Another batch size or number of threads may round a probability to the other side of the threshold."""
    for row, expected_row in zip(output.read_text().splitlines(), expected.decode().splitlines(), strict=True):
        assert row.partition(",")[0] == expected_row.partition(",")[0]
        assert len(row) == pytest.approx(len(expected_row), rel=0.02)


def test_blocks_batches_and_shards_change_no_row_and_the_merged_whole_is_recorded(command, output, whole, where):
    run_script(*command, output, "--block-size", 100, "--num-workers", 1)
    assert output.read_bytes() == whole
    run_script(*command, output, "--batch-size", 5, "--overwrite")
    assert_same_rows(output, whole)
    journal, merged, *parts = map(output.with_name, ("log.jsonl", "all.csv", "1.zip", "2.csv.gz", "3.csv"))
    journal.touch()
    for number, part in enumerate(parts, 1):
        run_script(*command, part, "--shard", f"{number}/3")
    assert [read_manifest(manifest_path(part)).photos for part in parts] == [4, 4, 8]
    assert read_records(journal) == []
    done = run_script("submission.py", "merge", *parts[::-1], "--output", merged, *where)
    assert done.stdout == f"{merged}: rows of 16 photos, 3 parts, checked\n"
    assert merged.read_bytes() == whole
    assert [(record["file"], record["experiments"]) for record in read_records(journal)] == [("all.csv", {"wide": 1.0})]
    refused = run_script(*command, output, "--shard", "1/5", check=False).stderr
    assert refused.endswith("error: --shard 1/5: 16 photos are only 4 blocks of 4\n")


def test_a_second_command_at_once_is_refused(command, output):
    with alone_in(output.with_name("x.csv.parts")):
        for _ in range(2):  # the first refusal leaves the lock
            refused = run_script(*command, output, check=False)
            assert (refused.returncode, "x.csv.parts: another command is at work there" in refused.stderr) == (2, True)
    assert os.listdir(output.parent) == []


def test_two_devices_share_the_missing_blocks(slow, command, output, whole, monkeypatch):
    run_script(*slow, output, check=False)
    monkeypatch.undo()  # the devices' processes have the real clock
    late = run_script(*command, output, "--devices", 2, "--hours", 0, check=False)
    assert (late.returncode, count_blocks(output)) == (3, 1)
    done = run_script(*command, output, "--devices", 2)
    assert "1 of 4 blocks are there" in done.stderr
    assert re.search(r"16 rows, checked; .* peak memory \d+ MiB \+ \d+ MiB\n$", done.stdout)
    assert_same_rows(output, whole)


def test_an_estimate_is_of_few_photos_needs_no_threshold_and_writes_nothing(where, tmp_path, monkeypatch):
    done = run_script("make_submission.py", "small", "--estimate", "--batch-size", 2, *where, cwd=tmp_path)
    figures = (
        r"photos a second, measured on 16\n.* hours for 16 photos on 1 device\(s\)\n1 shards of at most 11\.5 hours"
    )
    assert re.fullmatch(rf"[\d.]+ {figures}\npeak memory \d+ MiB\n", done.stdout)
    assert os.listdir(tmp_path) == []
    clock, rows = iter(range(100)), iter([("00.jpg", "1 2")] * 50)
    monkeypatch.setattr("time.monotonic", clock.__next__)
    assert measure(rows, first=4, enough=24, seconds=100) == (20, 1.0)
    assert measure(rows, first=2, enough=24, seconds=6.5) == (7, 1.0)
    assert measure(iter("abc"), first=3, enough=24, seconds=100) == (3, 1.0)  # too few to leave any out


def test_an_ensembles_file_decides_all(where, output, monkeypatch):
    monkeypatch.setattr("carvana.device.native_precision", lambda device: "no")  # exact
    (_, root, _, runs), file, repair = where, output.with_name("ensemble.json"), PostProcess(holes=200, parts=300)
    written = Choice(experiments={"small": 0.25, "wide": 0.75}, threshold=0.45, postprocess=repair)
    paths = {name: runs / name / "fold0" / "best.safetensors" for name in written.experiments}
    write_ensemble(file, written, {0: paths}, {})
    choice, checkpoints = choose(None, file, runs, None, None)
    predictor, photos = build_predictor(choice, checkpoints, CPU, Loading(), "torch"), open_test(root)
    assert (choice, [member.weight for member in predictor.mixes[0]]) == (written, [0.25, 0.75])
    run_script("make_submission.py", *where, "--ensemble", file, "--output", output)
    encode = lambda postprocess: [row.rle for row in predictor.encode(photos, photos.image_ids, 0.45, postprocess)]
    assert [rle for _, rle in read_submission(output)] == encode(repair) != encode(PostProcess())


def test_the_network_of_all_cars_predicts_with_the_threshold_of_the_folds(where, output, tmp_path):
    run = shutil.copytree(where[3] / "small", tmp_path / "runs" / "small")
    predict = ["make_submission.py", "small", *where, "--runs", run.parent, "--tta", "none", "--output", output]
    missing = run_script(*predict, "--fold", "none", check=False)
    assert "oof.json: missing, so there is no threshold yet: run src/evaluate.py small, or give" in missing.stderr
    digests = {name: file_digest(run / folder / "best.safetensors") for name, folder in FOLDERS.items()}
    folds = {name: digest for name, digest in digests.items() if name != "none"}
    oof = {"checkpoints": folds, "tta": ["identity"], "threshold": 0.41, "dice": 0.9, "interval": [0, 1], "photos": 9}
    write_json(run / "oof.json", oof)
    for fold, names, cv in (("none", ["none"], 0), ("0", ["0"], 0), ("all", ["0", "1"], 1)):
        done, manifest = run_script(*predict, "--fold", fold, "--overwrite"), read_manifest(manifest_path(output))
        used = {"small": {name: digests[name] for name in names}}
        assert (manifest.checkpoints, manifest.threshold) == (used, 0.41)
        assert ("note: the network of all cars has no out-of-fold score" in done.stderr) == (fold == "none")
        record = record_submission(tmp_path / "log.jsonl", output, run.parent, "")
        assert (len(record["cv"]), f"| small | {' '.join(names)} | identity |" in render_table([record])) == (cv, True)
    _, checkpoints = choose(["small"], None, run.parent, "none", None, "none,all")
    assert [network.fold for network in checkpoints["small"]] == [0, 1, None]
    photos = tmp_path / "photos"
    shutil.copytree(where[1] / "test", photos, ignore=lambda _, names: sorted(names)[1:])
    options = ["--photos", photos, "--output", tmp_path / "cut", "--runs", run.parent, "--fold", "none", "--hard"]
    assert "masks and cut-outs of 1 photos; threshold 0.41" in run_script("cut_out.py", "small", *options).stdout
    write_json(run / "oof.json", oof | {"checkpoints": folds | {"1": "another"}})
    other = run_script(*predict, "--fold", "none", check=False)
    assert "oof.json: of other checkpoints than those in" in other.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    ("small --output x.csv --fold 2", "fold2/best.safetensors: missing, it is not trained yet; run src/train.py small"),
    ("wide --output x.csv --fold all,none", "run src/train.py wide --fold none --resume"),
    ("small --output x.csv --fold 1-2", "--fold 1-2: give a number, several as 0,1, "),
    ("--output x.csv --ensemble x.json --fold none", "leave out --tta, --threshold and --fold"),
    ("nonesuch", "--output: missing"), ("nonesuch --output x.txt", "must end in"),
    ("nonesuch --output x.csv", "nonesuch: no trained fold there"), ("--output x.csv", "give names of experiments, or"),
    ("small --output x.csv", "oof.json: missing, so there is no threshold yet"),
    ("small --output x.csv --ensemble x.json", "one of the two"),
    ("--output x.csv --ensemble x.json --tta none", "x.json holds views and threshold"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_said_before_photos_are_opened(where, tmp_path, arguments, words):
    done = run_script("make_submission.py", *where, "--input", "no", *arguments.split(), check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), words in done.stderr) == (2, 1, True)


def test_the_sample_orders_the_photos_and_must_have_them_in_one_size(demo, command, output):
    photos = open_test(demo / "input")
    names = [photos.name(image_id) for image_id in photos.image_ids]
    assert match_sample(names[::-1], photos, whole=True) == photos.image_ids[::-1]
    assert match_sample(["other_01.jpg", *names], photos, whole=False) == photos.image_ids
    for sample, whole in ((["other_01.jpg", *names], True), (["other_01.jpg"], False)):
        with pytest.raises(InputError, match=rf"lacks 1 of the {len(sample)} photos of the sample: other_01\.jpg"):
            match_sample(sample, photos, whole)
    copy = shutil.copytree(demo / "input", output.with_name("input"))
    Image.new("RGB", (90, 60)).save(copy / "test" / names[5])
    refused = run_script(*command, output, "--input", copy, check=False).stderr
    assert f"{names[5]}: photos of different sizes in one submission: [(60, 90), (96, 144)]" in refused
