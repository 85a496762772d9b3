"""The main job as a user runs it: scripts, on drawn cars, with a tiny network; and what only processes can show."""

import json
import re
import shutil
import subprocess
import sys
import time

import cv2
import psutil
import pytest
import torch
from conftest import SRC, run_script

from carvana.data.geometry import Fit
from carvana.data.images import open_test
from carvana.data.rle import rle_decode
from carvana.log import read_records
from carvana.models.checkpoint import load_checkpoint, read_facts
from carvana.submission.csv import read_submission
from carvana.submission.journal import END, START
from carvana.training.state import saved_states

SETTINGS = """
data: {size: [64, 96], num_workers: 0}
model: {encoder: test_efficientnet, pretrained: false, decoder_channels: [16, 16, 16, 16, 16]}
optim: {lr: 0.01}
train: {epochs: 3, batch_size: 4, precision: fp32}
"""
DATA, FOLDS = "--input input --runs runs", "--folds folds.csv"
STEPS = [
    f"train.py tiny.yaml {DATA} {FOLDS}",
    f"evaluate.py tiny --tta hflip --compare tiny {DATA} {FOLDS}",
    f"make_submission.py tiny --tta hflip {DATA} --output tiny.csv.gz",
    "submission.py check tiny.csv.gz --input input --size 96x144",
    "submission.py score tiny.csv.gz --truth input/test_masks",
    "draw.py overlays tiny.csv.gz --input input --output overlays.jpg --count 4",
    "cut_out.py tiny --photos input/test --output cut --runs runs --hard",
]

DISTILLATION = [
    f"evaluate.py tiny --tta hflip --soft {DATA} {FOLDS}",
    f"make_submission.py tiny --tta hflip {DATA} --output teachers.csv --soft teachers.zip",
    f"train.py tiny.yaml --fold none --name student {DATA} {FOLDS} --set data.soft=[runs/tiny/oof_soft.zip]"
    " --set data.pseudo=teachers.zip --set train.epochs=5",
    f"make_submission.py student --fold none --threshold 0.5 --tta none {DATA} --output student.csv",
    "submission.py check student.csv --input input --size 96x144",
    "submission.py score student.csv --truth input/test_masks",
]


@pytest.fixture(scope="module")
def workplace(demo, tmp_path_factory):
    """A folder in which each of STEPS was taken, and what they printed."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "tiny.yaml").write_text(SETTINGS)
    (root / "README.md").write_text(f"# Submissions\n\n{START}\n{END}\n")
    (root / "log.jsonl").touch()
    for name in ("input", "folds.csv"):
        (root / name).symlink_to(demo / name)
    return root, [run_script(*step.split(), cwd=root).stdout for step in STEPS]


def models(root, name: str) -> list:
    return [load_checkpoint(path).model for path in sorted(root.glob(f"runs/{name}/fold*/best.safetensors"))]


def test_each_step_says_what_it_has_made(workplace):
    root, (_, evaluated, submitted, checked, scored, _, cut) = workplace
    summary = json.loads((root / "runs/tiny/oof.json").read_text())
    assert (summary["photos"], summary["folds_missing"]) == (64, [])
    assert summary["dice"] > 0.8  # an all-car mask has about 0.35
    assert f"tiny: out-of-fold Dice {summary['dice']:.5f}" in evaluated
    assert evaluated.endswith("tiny against tiny: no difference that these cars can show\n")
    sample = (root / "input/sample_submission.csv").read_text().splitlines()[1:]
    assert [name for name, _ in read_submission(root / "tiny.csv.gz")] == [line.split(",")[0] for line in sample]
    for words, printed in (("16 rows, checked", submitted), ("OK: 16 rows", checked), ("of 16 photos", cut)):
        assert words in printed
    assert float(scored.split("Dice ")[1].split()[0].rstrip(",")) > 0.8
    (record,) = read_records(root / "log.jsonl")
    assert (record["file"], record["folds"], record["views"]) == ("tiny.csv.gz", {"tiny": [0, 1]}, summary["tta"])
    assert record["cv"][0]["dice"] == summary["dice"]
    assert "| tiny.csv.gz | tiny | 0 1 |" in (root / "README.md").read_text()


def test_one_network_learns_from_the_ensemble_what_it_knows_of_photos_with_and_without_masks(workplace, tmp_path):
    root, _ = workplace
    for name in ("input", "folds.csv", "tiny.yaml"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "runs/tiny", tmp_path / "runs/tiny")
    printed = [run_script(*step.split(), cwd=tmp_path) for step in DISTILLATION]
    assert "oof_soft.zip: out-of-fold probabilities of 64 photos" in printed[2].stderr
    assert "teachers.zip: probabilities of 16 photos" in printed[2].stderr
    assert "16 photos, 1 networks x 1 views" in printed[3].stderr
    assert "OK: 16 rows" in printed[4].stdout
    assert float(printed[5].stdout.split("Dice ")[1].split()[0].rstrip(",")) > 0.8
    assert {record["train_photos"] for record in read_records(tmp_path / "runs/student/none/log.jsonl")} == {64 + 16}
    assert len(read_facts(tmp_path / "runs/student/none/best.safetensors")["seen_cars"]) == 4 + 1


def test_photos_of_higher_quality_are_all_that_is_needed(workplace, tmp_path):
    root, _ = workplace
    for name in ("train_masks", "sample_submission.csv", "train", "test"):
        hq = name in ("train", "test")
        (tmp_path / f"{name}_hq" if hq else tmp_path / name).symlink_to((root / "input" / name).resolve())
    data = ["--input", tmp_path, "--runs", root / "runs"]
    quick = ["--set", "data.photos=hq", "--set", "train.epochs=3", "--folds", "folds.csv", "--name", "hq"]
    run_script("train.py", "tiny.yaml", *data, *quick, cwd=root)
    run_script("evaluate.py", "hq", *data, "--folds", "folds.csv", cwd=root)
    run_script("make_submission.py", "hq", *data, "--output", tmp_path / "x.csv", cwd=root)
    mixed = run_script("make_submission.py", "hq", "tiny", *data, "--output", tmp_path / "y.csv", check=False, cwd=root)
    assert (mixed.returncode, mixed.stderr.count("trained on different photos: ")) == (2, 1)
    refused = run_script("evaluate.py", "tiny", *data, "--folds", "folds.csv", check=False, cwd=root)
    assert refused.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: no train or train.zip")


@pytest.mark.parametrize(("command", "line"), [
    ("train.py nonesuch", r"nonesuch\.yaml: no such experiment"),
    ("train.py tiny.yaml --input nowhere --runs new --folds folds.csv", r"nowhere: "),
    ("train.py tiny.yaml --set optim.lrr=1 --input input --runs new --folds folds.csv", r"optim\.lrr"),
    ("evaluate.py nonesuch --input input --runs runs --folds folds.csv", r"runs/nonesuch: no trained fold"),
    ("make_submission.py tiny --tta spin --input input --runs runs --output new.csv", r"spin"),
    ("make_submission.py tiny --input input --runs runs --output new.txt", r"new\.txt"),
    ("cut_out.py tiny --photos nowhere --output new --runs runs", r"nowhere"),
    ("report.py nonesuch --input input --runs runs", r"nonesuch"),
])  # fmt: skip
def test_a_mistake_ends_in_one_line_that_names_it_and_leaves_nothing(workplace, command, line):
    root, before = workplace[0], sorted(workplace[0].rglob("*"))
    result = run_script(*command.split(), cwd=root, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*{line}.*\n", result.stderr)
    assert sorted(root.rglob("*")) == before


def test_submission_and_cut_outs_are_the_mean_of_folds_and_views(workplace):
    root, _ = workplace
    networks, photos, fit = models(root, "tiny"), open_test(root / "input"), Fit((64, 96))
    threshold = json.loads((root / "runs/tiny/oof.json").read_text())["threshold"]
    for name, rle in read_submission(root / "tiny.csv.gz"):
        photo = photos.image(stem := name.removesuffix(".jpg"))
        image = torch.from_numpy(fit.image(photo)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            logits = [network(image) for network in networks] + [n(image.flip(-1)).flip(-1) for n in networks]
            probs = fit.undo(torch.stack(logits).sigmoid().mean(0), photo.shape[:2])
        # The scripts may compute in bf16: a few pixels fall on the other side of the threshold.
        mask = rle_decode(rle, photo.shape[:2])
        assert (mask != (probs[0, 0] >= threshold).numpy()).mean() < 0.01
        assert (mask != (cv2.imread(str(root / f"cut/{stem}_mask.png"), cv2.IMREAD_UNCHANGED) > 0)).mean() < 0.01


def test_a_photo_that_was_not_cut_gives_status_one(workplace, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    arguments = f"tiny --photos {tmp_path} --output {tmp_path / 'cut'} --runs runs"
    result = run_script("cut_out.py", *arguments.split(), cwd=workplace[0], check=False)
    assert (result.returncode, "\n1 photos were not cut: see above" in result.stdout) == (1, True)


def test_a_killed_training_resumes_to_the_same_weights_and_leaves_no_process(workplace):
    root, _ = workplace
    command = f"train.py tiny.yaml --fold 1 --name killed {DATA} {FOLDS}".split()
    words = [SRC / "train.py", *command[1:], "--set", "data.num_workers=1"]
    process = subprocess.Popen([sys.executable, *words], cwd=root, stderr=subprocess.DEVNULL)
    loaders = []  # children of the server that they are forked of
    while process.poll() is None and not loaders:
        time.sleep(0.02)
        if saved_states(root / "runs/killed/fold1/state"):  # else nothing is continued
            children = psutil.Process(process.pid).children(recursive=True)
            loaders = [child for child in children if child.ppid() != process.pid]
    process.kill()
    process.wait()
    assert 1 <= len(read_records(root / "runs/killed/fold1/log.jsonl")) < 3
    assert loaders
    assert not psutil.wait_procs(loaders, timeout=30)[1]  # none goes on
    run_script(*command, "--resume", cwd=root)  # without loaders
    whole, resumed = (models(root, name)[-1].state_dict() for name in ("tiny", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
