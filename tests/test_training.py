import itertools
import json
import shutil

import pytest
import torch

import carvana.training as training
from carvana.checkpoint import load_checkpoint
from carvana.device import native_precision
from carvana.errors import InputError
from carvana.folds import folds_digest, read_folds
from carvana.images import open_train
from carvana.log import read_records
from carvana.run import Fold, split_fold
from carvana.state import saved_states
from carvana.training import train_fold


@pytest.fixture
def fold(demo, tmp_path):
    return split_fold(open_train(demo / "input"), read_folds(demo / "folds.csv"), 0, tmp_path, "tiny")


def weights(folder) -> dict:
    return load_checkpoint(folder / "best.safetensors").model.state_dict()


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def test_a_run_leaves_checkpoint_log_config_and_state(tiny, fold):
    assert train_fold(tiny(), fold)
    checkpoint = load_checkpoint(fold.folder / "best.safetensors")
    records = read_records(fold.folder / "log.jsonl")
    best = max(records, key=lambda record: record["dice"])
    assert (checkpoint.fold, checkpoint.epoch, checkpoint.dice) == (0, best["epoch"], best["dice"])
    assert checkpoint.folds_digest == fold.digest
    assert checkpoint.config == tiny()
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[0]["photos"] == len(fold.val.image_ids) == 32
    assert [state.name for state in saved_states(fold.folder / "state")] == ["epoch-0002"]
    assert json.loads((fold.folder / "run.json").read_text())["folds_digest"] == fold.digest


@pytest.mark.parametrize("moment", ["in an epoch", "before the log", "before the state", "in the state"])
def test_resuming_after_a_kill_gives_the_same_weights(tiny, fold, tmp_path, monkeypatch, moment):
    config = tiny(train={"epochs": 3}, data={"augmentation": "light"})
    split = {name: split_named(fold, tmp_path / name) for name in ("whole", "killed")}
    assert train_fold(config, split["whole"])

    name = {
        "in an epoch": "validate", "before the log": "write_records",
        "before the state": "save_state", "in the state": "save_state",
    }[moment]  # fmt: skip
    original, calls = getattr(training, name), []

    def die_in_epoch_two(*args, **kwargs):
        calls.append(name)
        if len(calls) == 2:
            if moment == "in the state":
                (split["killed"].folder / "state" / "unfinished").mkdir()
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training, name, die_in_epoch_two)
        with pytest.raises(Killed):
            train_fold(config, split["killed"])
    assert train_fold(config, split["killed"], resume=True)

    whole, resumed = (weights(one.folder) for one in split.values())
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    dice = [[record["dice"] for record in read_records(one.folder / "log.jsonl")] for one in split.values()]
    assert dice[0] == dice[1]


def split_named(fold, folder):
    return Fold(fold.number, fold.train, fold.val, fold.digest, folder)


def test_a_run_is_not_overwritten_by_chance(tiny, fold):
    train_fold(tiny(train={"epochs": 1}), fold)
    before = (fold.folder / "best.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run; continue it with --resume or replace it with --overwrite"):
        train_fold(tiny(train={"epochs": 1}), fold)
    with pytest.raises(InputError, match=r"cannot be resumed, it was another run: config\.optim\.lr: 0\.001 -> 0\.5"):
        train_fold(tiny(train={"epochs": 1}, optim={"lr": 0.5}), fold, resume=True)
    assert (fold.folder / "best.safetensors").read_bytes() == before
    assert train_fold(tiny(train={"epochs": 1, "seed": 1}), fold, overwrite=True)
    assert (fold.folder / "best.safetensors").read_bytes() != before


def test_a_run_of_another_split_cannot_be_resumed(tiny, fold):
    """Its training cars could be in validation now."""
    train_fold(tiny(train={"epochs": 1}), fold)
    other = Fold(0, fold.val, fold.train, "another digest", fold.folder)
    with pytest.raises(InputError, match=r"it was another run: folds_digest: \w+ -> another digest; train_cars"):
        train_fold(tiny(train={"epochs": 1}), other, resume=True)


def test_a_checkpoint_without_its_state_is_not_replaced(tiny, fold):
    train_fold(tiny(), fold)
    shutil.rmtree(fold.folder / "state")
    before = (fold.folder / "best.safetensors").read_bytes()
    with pytest.raises(InputError, match="no state to resume from; start anew with --overwrite"):
        train_fold(tiny(), fold, resume=True)
    assert (fold.folder / "best.safetensors").read_bytes() == before


def test_a_damaged_state_ends_in_one_line(tiny, fold):
    train_fold(tiny(train={"epochs": 1}), fold)
    (fold.folder / "state" / "epoch-0001" / "optimizer.bin").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"epoch-0001: damaged \(UnpicklingError\); start anew with --overwrite"):
        train_fold(tiny(train={"epochs": 1}), fold, resume=True)


def test_time_limit_stops_with_a_resumable_state(tiny, fold, monkeypatch, capsys):
    clock = itertools.count()  # a second a look: about 40 in an epoch of 4 steps and 32 validated photos
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    assert not train_fold(tiny(train={"epochs": 5}), fold, deadline=10.0)
    assert not fold.folder.joinpath("state").exists()
    assert "nothing saved: not even one epoch fits" in capsys.readouterr().err
    clock = itertools.count()
    assert not train_fold(tiny(train={"epochs": 5}), fold, deadline=150.0)
    epochs = len(read_records(fold.folder / "log.jsonl"))
    assert 1 <= epochs < 5
    assert next(clock) < 150
    assert f"out of time after {epochs} of 5 epochs; --resume continues" in capsys.readouterr().err
    monkeypatch.undo()
    assert train_fold(tiny(train={"epochs": 5}), fold, resume=True)
    assert len(read_records(fold.folder / "log.jsonl")) == 5


def test_split_keeps_cars_apart(demo, tmp_path):
    photos, folds = open_train(demo / "input"), read_folds(demo / "folds.csv")
    splits = [split_fold(photos, folds, number, tmp_path, "x") for number in (0, 1)]
    assert sorted(splits[0].val.cars + splits[1].val.cars) == photos.cars
    for split in splits:
        assert set(split.train.cars) | set(split.val.cars) == set(photos.cars)
        assert not set(split.train.cars) & set(split.val.cars)
        assert split.digest == folds_digest(folds)
    with pytest.raises(InputError, match="--fold 7: the table has folds 0 to 1"):
        split_fold(photos, folds, 7, tmp_path, "x")


def test_split_refuses_a_table_without_a_present_car(demo, tmp_path):
    photos, folds = open_train(demo / "input"), read_folds(demo / "folds.csv")
    with pytest.raises(InputError, match=folds["car"][0]):
        split_fold(photos, folds[1:], 0, tmp_path, "x")


def test_precision_is_the_hardwares(monkeypatch):
    for capability, precision in [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert native_precision(torch.device("cuda")) == precision
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert native_precision(torch.device("cpu")) == "no"
    assert native_precision(torch.device("mps")) == "no"
