import math

import pytest
from conftest import run_script

from carvana.command import EXPERIMENTS
from carvana.data.folds import read_folds
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.training import dry_run
from carvana.training.dry_run import cost_of_training, count_photos, measure
from carvana.training.footprint import Footprint


def test_photos_are_counted_or_sixteen_of_each_car(demo, tmp_path):
    folds = read_folds(demo / "folds.csv")
    assert count_photos(demo / "input", folds, None) == count_photos(tmp_path, folds, None) == {0: 32, 1: 32}
    (tmp_path / "cars.txt").write_text("\n".join(folds["car"][:2]))
    assert count_photos(tmp_path, folds, tmp_path / "cars.txt") == {0: 16, 1: 16}


def test_real_steps_are_timed_with_as_many_photos_at_once_as_fit(tiny, monkeypatch):
    frozen = {"pretrained": True, "weights": "nowhere.pth", "frozen_parts": 2}  # are not needed yet
    config = tiny(data={"size": [64, 96]}, train={"batch_size": 4}, model=frozen)
    footprint = Footprint(config)
    (seconds, at_once), for_two = measure(footprint), footprint.step_bytes(4, 2, "no")
    assert (seconds > 0, at_once) == (True, 4)
    monkeypatch.setattr(dry_run, "room", lambda: for_two)
    assert measure(footprint)[1] == 2
    monkeypatch.setattr(dry_run, "room", lambda: 1000)
    monkeypatch.setattr(dry_run, "cost_lines", lambda footprint: [])
    assert "not measured: even one photo needs more" in list(cost_of_training(config, {0: 32, 1: 32}, [0]))[1]


def test_all_stages_are_listed_and_summed(tiny, monkeypatch):
    monkeypatch.setattr(dry_run, "measure", lambda footprint: (2.4, 8))
    monkeypatch.setattr(dry_run, "cost_lines", lambda footprint: [])
    monkeypatch.setattr(Footprint, "macs", lambda footprint: 10**13)
    stage = {"data": {"size": [32, 80], "crop": [32, 40]}, "train": {"epochs": 1}}
    lines = list(cost_of_training(tiny(earlier_stages=[stage]), {0: 3200, 1: 7193}, [0, 1]))
    assert lines[0] == "tiny, stage 1 of 2: 32x40, 1 epochs, 8 photos a step, 8 at once"
    assert lines[2].startswith("tiny, stage 2 of 2: 32x48, 2 epochs")
    seconds = 2e13 / dry_run.T4_FLOPS * ((3 * 7193 + 2 * 3200) + 2 * (3 * 7193 + 3200))  # whole photos cost two crops
    assert lines[4] == f"fold 0 on a T4: {seconds / 3600:.1f} hours, computed at 12 TFLOP/s, not measured"
    hours = 0.1 * ((3 * 7193 + 2 * 3200) + 2 * (3 * 7193 + 3200)) / 3600
    assert lines[6] == f"fold 0: 7193 photos to train on, 3200 to validate on: {hours:.1f} hours"
    *_, last, _ = cost_of_training(tiny(), {0: 3200, 1: 7193}, [None])
    assert last == f"fold none: 10393 photos to train on, 0 to validate on: {0.1 * 2 * 3 * 10393 / 3600:.1f} hours"
    with pytest.raises(InputError, match="--fold 2: the table has folds 0 to 1"):
        list(cost_of_training(tiny(), {0: 1, 1: 1}, [2]))


def test_the_script_needs_neither_photos_nor_weights_and_without_timing_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "measure", None)
    settings = ["model.weights=nowhere.pth", "model.encoder=test_efficientnet", "earlier_stages=[]"]
    words = ["--input", "none", "--no-timing", *(word for setting in settings for word in ("--set", setting))]
    result = run_script("train.py", "unet_lite0", "--dry-run", "--fold", 0, *words, cwd=tmp_path)
    assert "16 photos are assumed of each of 318 cars" in result.stderr
    assert " fits a T4 (14.5 GiB)" in result.stdout
    config = load_experiment("unet_lite0", EXPERIMENTS, settings)
    macs = Footprint(config).macs() * math.prod(config.data.size) / math.prod(config.data.crop)  # of a whole photo
    assert f"  prediction  {6e12 / macs:.1f} photos a second on a T4 by one network" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("fold 0 on a T4: ")
    assert list(tmp_path.iterdir()) == []
