import functools
import itertools
import json
import shutil

import pytest
import torch

import carvana.averaging as averaging
import carvana.engine as engine
import carvana.learner as learner
import carvana.training as training
from carvana.checkpoint import load_checkpoint
from carvana.device import native_precision
from carvana.errors import InputError
from carvana.folds import folds_digest, read_folds
from carvana.images import open_train
from carvana.log import read_records
from carvana.run import Fold, split_fold
from carvana.state import saved_states
from carvana.training import hardest, train_fold
from carvana.validation import whole_photos


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


STAGES = {
    "train": {"epochs": 2, "batch_size": 16},
    "earlier_stages": [{"data": {"size": [16, 32]}, "train": {"epochs": 2, "batch_size": 8}, "optim": {"lr": 0.003}}],
}


def test_stages_change_size_batch_and_rate_and_carry_the_weights(tiny, fold, monkeypatch):
    seen, rates, original = [], [], engine.set_rate
    monkeypatch.setattr(engine, "set_rate", lambda optimizer, lr, *_: (rates.append(lr), original(optimizer, lr)))
    watch_batches(monkeypatch, seen)
    assert train_fold(tiny(**STAGES), fold)
    records = read_records(fold.folder / "log.jsonl")
    assert [record["size"] for record in records] == [[16, 32]] * 2 + [[32, 48]] * 2
    assert [record["step"] for record in records] == [4, 8, 10, 12]
    assert set(seen) == {(8, 3, 16, 32), (16, 3, 32, 48)}
    cosine = [engine.rate_factor(i, 16, 0.1) for i in range(8)], [engine.rate_factor(i, 8, 0.1) for i in range(4, 8)]
    assert rates == pytest.approx([0.003 * f for f in cosine[0]] + [0.001 * f for f in cosine[1]])  # one for both
    checkpoint = load_checkpoint(fold.folder / "best.safetensors")
    assert checkpoint.config.data.size == (32, 48)
    assert checkpoint.epoch in (3, 4)


def watch_batches(monkeypatch, seen: list) -> None:
    original = engine.forward_backward

    def watch(learner, images, masks):
        seen.append(tuple(images.shape))
        return original(learner, images, masks)

    monkeypatch.setattr(engine, "forward_backward", watch)


def test_a_schedule_of_its_own_starts_anew_in_each_stage(tiny, fold, monkeypatch):
    rates, original = [], engine.set_rate
    monkeypatch.setattr(engine, "set_rate", lambda optimizer, lr, *_: (rates.append(lr), original(optimizer, lr)))
    train_fold(tiny(**STAGES, optim={"schedule": "stage"}), fold)
    assert max(rates[:8]) == pytest.approx(0.003)
    assert rates[8:] == pytest.approx([0.001 * engine.rate_factor(i, 4, 0.1) for i in range(4)])


def test_an_early_stages_best_is_its_own_and_gives_way(tiny, fold, monkeypatch):
    """A run cut in its first stage can be evaluated, at that stage's size; the next stage starts from nothing."""
    monkeypatch.setattr(training, "validate", lambda learner, *_: {"x": 1 - 0.1 * learner.progress.epoch})
    kept = []
    original = training.keep_checkpoint
    monkeypatch.setattr(training, "keep_checkpoint", lambda *args: (kept.append(args[2]), original(*args)))
    train_fold(tiny(**STAGES), fold)
    assert [stage.data.size for stage in kept] == [(16, 32), (32, 48)]
    checkpoint = load_checkpoint(fold.folder / "best.safetensors")
    assert (checkpoint.epoch, checkpoint.dice) == (3, pytest.approx(0.8))


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_resuming_in_any_stage_gives_the_same_weights(tiny, fold, tmp_path, monkeypatch, epoch):
    config = tiny(**STAGES | {"train": {"epochs": 2, "batch_size": 16, "replay": 0.3}})
    split = {name: split_named(fold, tmp_path / name) for name in ("whole", "killed")}
    assert train_fold(config, split["whole"])
    original = training.train_one_epoch

    def die(learner, *args):
        if learner.progress.epoch == epoch - 1:
            raise Killed
        return original(learner, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_one_epoch", die)
        with pytest.raises(Killed):
            train_fold(config, split["killed"])
    assert train_fold(config, split["killed"], resume=True)
    whole, resumed = (weights(one.folder) for one in split.values())
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_crops_are_trained_on_and_whole_photos_validated(tiny, fold, monkeypatch):
    seen = []
    watch_batches(monkeypatch, seen)
    config = tiny(data={"size": [96, 144], "fit": "pad", "crop": [32, 64]}, train={"epochs": 1})
    assert train_fold(config, fold)
    assert set(seen) == {(8, 3, 32, 64)}
    assert whole_photos(8, config.data) == 1
    assert len(read_records(fold.folder / "log.jsonl")) == 1


def test_replay_shows_the_hardest_photos_once_more(tiny, fold):
    assert hardest([0.1, 0.4, float("nan"), 0.3, 0.2], 0.4) == [1, 3]
    assert hardest([], 0.4) == []
    train_fold(tiny(train={"replay": 0.25}), fold)
    steps = [record["step"] for record in read_records(fold.folder / "log.jsonl")]
    assert steps == [4, 9]  # 32 photos, then 40


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_mean_of_epochs_is_the_mean_of_their_weights(tiny, fold, monkeypatch, which):
    dice = {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.4}
    kept, original = {}, averaging.keep_checkpoint

    def score(learner, *_):
        epoch = learner.progress.epoch + 1
        kept[epoch] = {name: tensor.clone() for name, tensor in learner.ema.module.state_dict().items()}
        return {"x": dice.get(epoch, 0.95)}

    monkeypatch.setattr(training, "validate", score)
    monkeypatch.setattr(averaging, "validate", score)
    assert train_fold(tiny(train={"epochs": 4, "average": which, "average_of": 2}), fold)
    chosen = {"last": (3, 4), "best": (2, 4)}[which]
    found = load_checkpoint(fold.folder / "best.safetensors")
    assert found.dice == 0.95
    for name, tensor in found.model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, (kept[chosen[0]][name] + kept[chosen[1]][name]) / 2, atol=1e-6)
    assert not (fold.folder / "epochs").exists()
    assert original is averaging.keep_checkpoint


def test_a_worse_mean_of_epochs_leaves_the_best(tiny, fold, monkeypatch):
    monkeypatch.setattr(averaging, "validate", lambda *_: {"x": 0.0})
    assert train_fold(tiny(train={"average": "last", "average_of": 2}), fold)
    records = read_records(fold.folder / "log.jsonl")
    assert load_checkpoint(fold.folder / "best.safetensors").dice == max(record["dice"] for record in records)


def test_a_run_starts_from_another_runs_weights_of_the_same_fold(tiny, fold, tmp_path):
    train_fold(tiny(train={"epochs": 1}), fold)
    start = weights(fold.folder)
    second = split_named(fold, tmp_path / "second" / "fold0")
    config = tiny(train={"epochs": 1, "init_from": "tiny"}, optim={"lr": 1e-12})
    assert train_fold(config, second)
    after = weights(second.folder)
    names = [name for name, _ in load_checkpoint(fold.folder / "best.safetensors").model.named_parameters()]
    assert all(torch.allclose(start[name], after[name], atol=1e-6) for name in names)


def test_weights_that_saw_the_validation_are_refused(tiny, demo, fold, tmp_path):
    train_fold(tiny(train={"epochs": 1}), fold)
    config = tiny(train={"epochs": 1, "init_from": "tiny"})
    other = Fold(0, fold.train, fold.val, "another digest", tmp_path / "second" / "fold0")
    with pytest.raises(InputError, match=r"tiny/fold0/best\.safetensors is of another split: it has seen cars"):
        train_fold(config, other)
    with pytest.raises(InputError, match="has other model settings"):
        learner.build_learner(tiny(model={"decoder_channels": [4] * 5}), fold.folder / "best.safetensors")
    with pytest.raises(InputError, match=r"fold1/best\.safetensors: not a readable checkpoint"):
        train_fold(config, Fold(1, fold.val, fold.train, fold.digest, tmp_path / "second" / "fold1"))


def test_a_frozen_encoder_keeps_weights_and_statistics_then_learns(tiny, fold, monkeypatch):
    before, encoders = {}, []
    original = training.keep_epoch

    def look(one, *args):
        encoders.append({k: v.clone() for k, v in one.model.network.encoder.state_dict().items()})
        original(one, *args)

    monkeypatch.setattr(training, "keep_epoch", look)
    config = tiny(train={"epochs": 2}, optim={"frozen_encoder_epochs": 1})
    before = learner.build_learner(config).model.network.encoder.state_dict()
    train_fold(config, fold)
    assert all(torch.equal(before[name], encoders[0][name]) for name in before)
    changed = [name for name in before if not torch.equal(before[name], encoders[1][name])]
    assert {"running_mean", "weight"} <= {name.rpartition(".")[2] for name in changed}


def test_frozen_statistics_stay_while_weights_learn(tiny):
    one = learner.build_learner(tiny(optim={"frozen_norm": True}))
    assert not one.begin_epoch()
    norms = [m for m in one.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    in_encoder = {id(m) for m in one.model.network.encoder.modules()}
    assert all(m.training == (id(m) not in in_encoder) for m in norms)


def test_a_compiled_model_trains_and_is_saved_as_any(tiny, fold, monkeypatch):
    """Traced by torch.compile but not translated to C++, which takes minutes here."""
    compiled = []
    eager = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: (compiled.append(self), eager.__get__(self)())[1])
    settings = {"train": {"epochs": 1}, "data": {"size": [32, 32]}}
    plain = split_named(fold, fold.folder.parents[1] / "plain" / "fold0")
    assert train_fold(tiny(**settings), plain)
    assert not compiled
    assert train_fold(tiny(**settings | {"train": {"epochs": 1, "compile": True}}), fold)
    assert len(compiled) == 1
    one, other = weights(fold.folder), weights(plain.folder)
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-3) for name in other)


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
