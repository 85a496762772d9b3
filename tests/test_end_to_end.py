"""The main job as a user runs it: scripts, on drawn cars, with a tiny network."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import psutil
import pytest
import torch
from conftest import SRC, run_script

from carvana.checkpoint import load_checkpoint
from carvana.device import Device
from carvana.folds import read_folds
from carvana.geometry import Fit
from carvana.images import open_test, open_train
from carvana.journal import HEADER, read_journal
from carvana.log import read_records
from carvana.oof import predict_oof
from carvana.rle import rle_decode
from carvana.submission import read_submission

SETTINGS = """
data: {size: [64, 96], num_workers: 1}
model: {encoder: test_efficientnet, pretrained: false, decoder_channels: [16, 16, 16, 16, 16]}
optim: {lr: 0.01}
train: {epochs: 4, batch_size: 4, precision: fp32}
"""


@pytest.fixture(scope="module")
def workplace(demo, tmp_path_factory):
    """Two trained and evaluated folds in runs/, and a submission; what the scripts printed, by script."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "tiny.yaml").write_text(SETTINGS)
    (root / "README.md").write_text("\n".join(["# Submissions", *HEADER]) + "\n")
    data, where = ("--input", demo / "input"), ("--runs", root / "runs")
    folds, output = ("--folds", demo / "folds.csv"), root / "tiny.csv.gz"
    steps = {
        "train.py": (root / "tiny.yaml", "--fold", "all", *data, *where, *folds),
        "evaluate.py": ("tiny", "--tta", "hflip", *data, *where, *folds),
        "make_submission.py": ("tiny", "--tta", "hflip", *data, *where, "--output", output),
        "check_submission.py": (output, *data, "--size", "96x144"),
        "score_submission.py": (output, "--truth", demo / "input" / "test_masks"),
        "draw_overlays.py": (output, *data, "--output", root / "overlays.jpg", "--count", 4),
    }
    return root, {script: run_script(script, *arguments, cwd=root) for script, arguments in steps.items()}


def test_folds_learn(workplace):
    root, _ = workplace
    oof = json.loads((root / "runs" / "tiny" / "oof.json").read_text())
    assert oof["photos"] == 64
    assert oof["folds_missing"] == []
    assert oof["dice"] > 0.8  # an all-car mask has about 0.35


def test_submission_is_whole_checked_and_scored(workplace, demo):
    root, printed = workplace
    rows = dict(read_submission(root / "tiny.csv.gz"))
    sample = (demo / "input" / "sample_submission.csv").read_text().splitlines()[1:]
    assert list(rows) == [line.split(",")[0] for line in sample]
    assert "OK: 16 rows" in printed["check_submission.py"].stdout
    assert "16 rows, checked" in printed["make_submission.py"].stdout
    assert "Dice" in printed["score_submission.py"].stdout
    assert (root / "overlays.jpg").stat().st_size > 1000
    (row,) = read_journal(root / "README.md")
    assert (row["file"], row["experiments"], row["folds"]) == ("tiny.csv.gz", "tiny", "0 1")
    assert row["CV (95 % of cars drawn anew)"].endswith(" of 64 photos")
    assert row["command"].startswith("`make_submission.py tiny --tta hflip")


def test_the_submission_is_the_mean_of_folds_and_views(workplace, demo):
    root, _ = workplace
    oof = json.loads((root / "runs" / "tiny" / "oof.json").read_text())
    models = [load_checkpoint(path).model for path in sorted((root / "runs" / "tiny").glob("fold*/best.safetensors"))]
    photos, fit = open_test(demo / "input"), Fit((64, 96))
    for name, rle in read_submission(root / "tiny.csv.gz"):
        photo = photos.image(name.removesuffix(".jpg"))
        image = torch.from_numpy(fit.image(photo)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            logits = [model(image) for model in models] + [model(image.flip(-1)).flip(-1) for model in models]
            probs = fit.undo(torch.stack(logits).sigmoid().mean(0), photo.shape[:2])
        expected = (probs[0, 0] >= oof["threshold"]).numpy()
        # The scripts may compute in bf16: a few pixels fall on the other side of the threshold.
        assert (rle_decode(rle, photo.shape[:2]) != expected).mean() < 0.01


@pytest.mark.parametrize("backend", ["compile", "openvino"])
def test_backends_give_the_dice_of_float32(workplace, demo, tmp_path, backend):
    """Within 0.0005, whatever precision they compute in."""
    root, _ = workplace
    if backend == "openvino":
        pytest.importorskip("openvino")
    shutil.copytree(root / "runs", tmp_path / "runs")
    checkpoints = sorted((tmp_path / "runs" / "tiny").glob("fold*/best.safetensors"))
    found = predict_oof(
        [load_checkpoint(path) for path in checkpoints], open_train(demo / "input"), read_folds(demo / "folds.csv"),
        ["identity"], Device(torch.device("cpu")), num_workers=1,
    )  # fmt: skip
    options = ["--input", demo / "input", "--runs", tmp_path / "runs", "--folds", demo / "folds.csv"]
    run_script("evaluate.py", "tiny", "--tta", "none", "--backend", backend, *options)
    oof = json.loads((tmp_path / "runs" / "tiny" / "oof.json").read_text())
    assert oof["dice"] == pytest.approx(found.curves.mean(0).max(), abs=5e-4)


def test_cars_are_cut_out_of_any_photos(workplace, demo, tmp_path):
    root, _ = workplace
    photos = sorted((demo / "input" / "test").iterdir())[:2]
    (tmp_path / "mine").mkdir()
    for number, photo in enumerate(photos):
        shutil.copy(photo, tmp_path / "mine" / f"my car {number}.jpg")
    options = ["--images", tmp_path / "mine", "--masks-out", tmp_path / "masks", "--runs", root / "runs"]
    result = run_script("make_submission.py", "tiny", "--tta", "hflip", *options)
    assert "of 2 photos" in result.stdout
    submitted = dict(read_submission(root / "tiny.csv.gz"))
    for number, photo in enumerate(photos):
        mask = cv2.imread(str(tmp_path / "masks" / f"my car {number}_mask.png"), cv2.IMREAD_UNCHANGED) > 0
        assert (mask != rle_decode(submitted[photo.name], mask.shape)).mean() < 0.01


def test_two_passes_from_training_to_submission(workplace, demo):
    """A fine experiment sees the boxes that another one finds; parts of a boxless run are not mixed with it."""
    root, _ = workplace
    boxes = SETTINGS.replace("num_workers: 1", "num_workers: 1, boxes_from: tiny")
    (root / "fine.yaml").write_text(boxes.replace("epochs: 4", "epochs: 2, init_from: tiny"))
    data, where, folds = ("--input", demo / "input"), ("--runs", root / "runs"), ("--folds", demo / "folds.csv")
    run_script("train.py", root / "fine.yaml", "--fold", "all", *data, *where, *folds, cwd=root)
    run_script("evaluate.py", "fine", "--tta", "none", *data, *where, *folds)
    oof = json.loads((root / "runs" / "fine" / "oof.json").read_text())
    records = [read_records(root / "runs" / "fine" / f"fold{fold}" / "log.jsonl") for fold in (0, 1)]
    best = [max(record["dice"] for record in fold) for fold in records]
    assert oof["dice_at_half"] == pytest.approx(sum(best) / 2, abs=0.002)  # evaluation sees what validation saw
    run_script("make_submission.py", "fine", "tiny", "--threshold", 0.5, *data, *where, "--output", root / "fine.csv")
    score = run_script("score_submission.py", root / "fine.csv", "--truth", demo / "input" / "test_masks")
    assert float(score.stdout.split("Dice ")[1].split()[0].rstrip(",")) > 0.8
    moved = root / "runs" / "tiny"
    moved.rename(root / "runs" / "moved")
    try:
        result = run_script("make_submission.py", "fine", *data, *where, "--output", root / "x.csv", check=False)
    finally:
        (root / "runs" / "moved").rename(moved)
    assert result.returncode == 2
    assert "data.boxes_from needs it" in result.stderr.splitlines()[-1]


def test_two_processes_validate_each_photo_once(workplace, demo):
    root, _ = workplace
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    script = [SRC / "train.py", root / "tiny.yaml", "--fold", 0, "--input", demo / "input", "--name", "pair"]
    options = ["--runs", root / "runs", "--folds", demo / "folds.csv", "--set", "train.epochs=1"]
    done = subprocess.run(map(str, command + script + options), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (record,) = read_records(root / "runs" / "pair" / "fold0" / "log.jsonl")
    alone = read_records(root / "runs" / "tiny" / "fold0" / "log.jsonl")[0]
    assert (record["processes"], record["photos"]) == (2, 32)
    assert record["step"] * 2 == alone["step"]  # the training photos are shared
    assert done.stderr.count("fold 0 epoch 1/1") == 1  # one process talks


def test_a_killed_run_resumes_to_the_same_weights(workplace, demo):
    root, _ = workplace
    command = [SRC / "train.py", root / "tiny.yaml", "--fold", 1, "--input", demo / "input", "--name", "killed"]
    command += ["--runs", root / "runs", "--folds", demo / "folds.csv"]
    command = [sys.executable, *map(str, command)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log = root / "runs" / "killed" / "fold1" / "log.jsonl"
    while process.poll() is None and len(read_records(log)) < 2:
        time.sleep(0.02)
    loaders = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(read_records(log)) < 4
    assert loaders
    assert not psutil.wait_procs(loaders, timeout=30)[1]  # none goes on
    subprocess.run([*command, "--resume"], check=True, capture_output=True, timeout=200)
    whole, resumed = (
        load_checkpoint(root / "runs" / name / "fold1" / "best.safetensors").model.state_dict()
        for name in ("tiny", "killed")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["nonesuch"], "no such experiment"),
        ("train.py", ["demo", "--input", "nowhere"], "nowhere"),
        ("train.py", ["demo", "--set", "optim.lrr=1"], "did you mean lr?"),
        ("evaluate.py", ["nonesuch"], "no trained fold there"),
        ("make_submission.py", ["tiny", "--output", "x.csv", "--tta", "spin"], "no view is named spin"),
    ],
)
def test_mistakes_end_in_one_line(script, arguments, message, tmp_path):
    result = run_script(script, *arguments, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_photo_that_breaks_in_a_loader_process_ends_in_one_line(workplace, demo, tmp_path):
    root, _ = workplace
    shutil.copytree(demo / "input", tmp_path / "input")
    photo = sorted((tmp_path / "input" / "test").iterdir())[3]
    photo.write_bytes(photo.read_bytes()[:2000])
    options = ["--input", tmp_path / "input", "--runs", root / "runs", "--output", tmp_path / "x.csv"]
    result = run_script("make_submission.py", "tiny", *options, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert photo.name in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input"]


def test_faulty_photos_are_listed_before_training(demo, tmp_path):
    data = tmp_path / "input"
    shutil.copytree(demo / "input", data)
    first, second = sorted((data / "train").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:2000])
    (data / "train_masks" / f"{second.stem}_mask.gif").unlink()
    result = run_script(
        "train.py", "demo", "--input", data, "--folds", demo / "folds.csv", "--runs", tmp_path / "runs", check=False
    )
    assert result.returncode == 2
    assert first.name in result.stderr
    assert f"{second.stem}_mask.gif" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()
