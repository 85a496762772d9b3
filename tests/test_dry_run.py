import pandas as pd
import pytest
from conftest import run_script

from carvana import dry_run as dry_run_module
from carvana.dry_run import Pace, count_photos, describe, dry_run, explain, measure, stage_seconds, t4_seconds
from carvana.errors import InputError
from carvana.footprint import GIB, Footprint

PACE = Pace(step=2.0, prediction=0.5, photos=8, at_once=8, steps=3)


@pytest.fixture
def folds():
    return pd.DataFrame({"car": ["a", "b", "c"], "pixels": [1, 2, 3], "fold": [0, 1, 0]})


def test_without_data_a_car_has_sixteen_photos(folds, tmp_path):
    assert count_photos(tmp_path, folds, None) == {0: 32, 1: 16}
    (tmp_path / "cars.txt").write_text("a\nb\n")
    assert count_photos(tmp_path, folds, tmp_path / "cars.txt") == {0: 16, 1: 16}


def test_photos_that_are_there_are_counted(demo):
    folds = pd.read_csv(demo / "folds.csv", dtype={"car": str})
    assert count_photos(demo / "input", folds, None) == {0: 32, 1: 32}


def test_the_time_of_a_stage_is_steps_and_validation_of_all_epochs(tiny):
    stage = tiny(train={"epochs": 3, "batch_size": 8, "replay": 0.5})
    steps = 8  # 40 photos and 20 of them once more, in eights
    assert stage_seconds(stage, PACE, 40, 10) == 3 * (steps * 2.0 + 10 * 0.5)


def test_real_steps_are_timed(tiny):
    pace = measure(Footprint(tiny()))
    assert (pace.photos, pace.at_once, pace.steps) == (8, 8, 3)
    assert pace.step > 0
    assert pace.prediction > 0


def test_a_costly_step_is_measured_with_fewer_photos(tiny):
    stage = tiny()
    pace = measure(Footprint(stage), patience=0.0)
    assert (pace.photos, pace.steps) == (1, 1)
    assert explain(pace, stage) == "one step, measured with 1 of 8 photos and scaled"


def test_lack_of_memory_is_told(tiny, monkeypatch):
    stage = tiny(data={"size": [64, 96]})
    footprint = Footprint(stage)
    few = footprint.step_bytes(8, 2, "no")
    monkeypatch.setattr(dry_run_module, "room", lambda: few)
    pace = measure(footprint)
    assert (pace.photos, pace.at_once) == (8, 2)
    assert explain(pace, stage) == "mean of 3, 2 at once for lack of memory"
    monkeypatch.setattr(dry_run_module, "room", lambda: 1000)
    assert measure(footprint) is None
    lines = list(dry_run(stage, {0: 32, 1: 32}, [0]))
    assert "not measured: even one photo needs more" in lines[-2]


def test_all_stages_are_told_and_summed(tiny, monkeypatch):
    config = tiny(earlier_stages=[{"data": {"size": [32, 40]}, "train": {"epochs": 1}}], model={"pretrained": True})
    monkeypatch.setattr(dry_run_module, "measure", lambda footprint: PACE)
    lines = list(dry_run(config, {0: 3200, 1: 7200}, [0, 1]))
    assert lines[0] == "tiny, stage 1 of 2: 32x40, 1 epochs, 8 photos a step, 8 at once"
    assert any(line.startswith("tiny, stage 2 of 2: 32x48, 2 epochs") for line in lines)
    assert lines[-3] == "fold 0: 7200 photos to train on, 3200 to validate on: 2.8 hours"  # 3 (900 * 2 + 3200 / 2) s
    assert lines[-1].startswith("in all 6.5 hours")
    with pytest.raises(InputError, match="--fold 2: the table has folds 0 to 1"):
        list(dry_run(config, {0: 1, 1: 1}, [2]))


def test_hours_on_a_t4_are_computed_without_a_step(tiny, monkeypatch):
    monkeypatch.setattr(dry_run_module, "measure", None)
    config = tiny()
    lines = list(dry_run(config, {0: 10**6, 1: 2 * 10**6}, [0], timed=False))
    macs = Footprint(config).macs()
    hours = 2 * 2 * macs * (3 * 2 * 10**6 + 10**6) / dry_run_module.T4_FLOPS / 3600  # 2 epochs
    assert lines[-1] == f"fold 0 on a T4: {hours:.1f} hours, computed at 12 TFLOP/s, not measured"
    half = tiny(data={"crop": [16, 48]})
    assert t4_seconds(half, macs, 0, 1) == 2 * t4_seconds(config, macs, 0, 1)  # of whole photos


def test_a_network_too_large_for_the_card_is_told(tiny):
    config = tiny(data={"size": [1280, 1920]}, train={"batch_size": 400})
    (memory,) = (line for line in describe(Footprint(config)) if "memory" in line)
    assert "does not fit a T4" in memory
    assert Footprint(config).configured_bytes("fp16") > 15 * GIB


def test_crops_and_micro_batches_need_less(tiny):
    sizes = {"size": [256, 256]}
    whole = Footprint(tiny(data=sizes)).configured_bytes("fp16")
    assert Footprint(tiny(data=sizes | {"crop": [128, 128]})).configured_bytes("fp16") < 0.5 * whole
    assert Footprint(tiny(data=sizes, train={"micro_batch": 2})).configured_bytes("fp16") < 0.5 * whole
    assert Footprint(tiny(data=sizes)).configured_bytes("no") > 1.4 * whole


def test_the_largest_batch_is_the_last_that_fits(tiny):
    footprint, room = Footprint(tiny(data={"size": [256, 384]})), GIB // 2
    most = footprint.largest_batch(room, "fp16")
    assert footprint.step_bytes(2 * most, most, "fp16") <= room < footprint.step_bytes(2 * most + 2, most + 1, "fp16")


def test_multiplications_of_a_hand_counted_network(tiny):
    model = {"architecture": "vanilla_unet", "encoder": "tf_efficientnet_lite0", "base_width": 2, "border": 0}
    model["decoder_channels"] = [256, 128, 64, 32, 16]
    footprint = Footprint(tiny(data={"size": [16, 16]}, model=model))
    first, second = 3 * 2 * 9, 2 * 2 * 9  # multiplications a pixel of the two finest convolutions
    down = sum(((w * 2 * w + 4 * w * w) * 9) / (4**level) for level, w in enumerate((2, 4, 8, 16), start=1))
    up = sum(((3 * w * w) + w * w) * 9 / (4**level) for level, w in enumerate((2, 4, 8, 16)))
    assert footprint.macs() == 256 * (first + second + down + up + 2)
    assert footprint.parameters[0] == 0


def test_the_script_needs_no_data(tmp_path):
    options = [
        "--dry-run",
        "--fold",
        0,
        "--input",
        tmp_path / "none",
        "--set",
        "data.size=[64,96]",
        "--set",
        "train.batch_size=1",
    ]
    result = run_script("train.py", "vanilla_unet", *options, cwd=tmp_path)
    assert "16 photos are assumed of each of 318 cars" in result.stderr
    assert "fold 0: 4064 photos to train on, 1024 to validate on" in result.stdout
    assert "GiB on a GPU in fp16" in result.stdout
    assert list(tmp_path.iterdir()) == []
