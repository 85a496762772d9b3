"""Runs of a tiny network: what they leave, what stops them, what they continue from, what is refused."""

import itertools
import json
import re
import shutil
import time
from dataclasses import replace
from unittest.mock import DEFAULT, Mock, patch

import pytest
import torch
import yaml
from conftest import TINY, full_disk, run_script
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from varied_runs import one_car_fold

from carvana.config import parse_config
from carvana.data.folds import fold_name, folds_digest, parse_folds, read_folds, run_folder
from carvana.data.images import open_train
from carvana.errors import InputError
from carvana.log import alone_in, read_records, write_json, write_records
from carvana.models import build_model
from carvana.models.checkpoint import load_checkpoint, read_facts, save_checkpoint
from carvana.training import engine
from carvana.training import fold as module
from carvana.training.fold import train_fold, train_folds
from carvana.training.learner import build_learner
from carvana.training.run import Budget, with_epochs_of_folds
from carvana.training.split import Fold, initial_checkpoint, split_fold
from carvana.training.validation import validation_batch

STAGE = {"data": {"size": [16, 32], "crop": None}, "train": {"epochs": 2, "batch_size": 8}, "optim": {"lr": 0.003}}
LAST = {"data": TINY["data"] | {"crop": [32, 32]}, "train": TINY["train"] | {"batch_size": 16}}
LAST |= {"optim": {"optimizer": "muon"}}
CONFIG = parse_config(TINY | LAST | {"earlier_stages": [STAGE]}, "test")
CURVES = {"train/loss": "loss", "train/skipped_steps": "skipped_steps", "val/dice": "dice", "val/worst_dice": "worst"}


@pytest.fixture
def fold(demo, tmp_path):
    return one_car_fold(demo, tmp_path)


BATCHES, RATES = Mock(wraps=engine.forward_backward), Mock(wraps=engine.set_rate)


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """A run of CONFIG that nothing stopped; BATCHES and RATES are what it was trained on."""
    fold = one_car_fold(demo, tmp_path_factory.mktemp("runs"))
    with patch.multiple(engine, forward_backward=BATCHES, set_rate=RATES):
        assert train_fold(CONFIG, fold)
    return fold


def results(fold):
    return load_checkpoint(fold.folder / "best.safetensors"), read_records(fold.folder / "log.jsonl")


def test_split_keeps_cars_apart(demo, tmp_path):
    table, photos = read_folds(demo / "folds.csv"), open_train(demo / "input")
    folds = [split_fold(photos, table, number, tmp_path, "x") for number in (0, 1)]
    assert sorted(folds[0].val.cars + folds[1].val.cars) == photos.cars
    assert all(sorted(fold.train.cars + fold.val.cars) == photos.cars for fold in folds)
    assert (folds[1].digest, folds[1].folder) == (folds_digest(table), tmp_path / "x" / "fold1")
    with pytest.raises(InputError, match="--fold 7: the table has folds 0 to 1"):
        split_fold(photos, table, 7, tmp_path, "x")
    with pytest.raises(InputError, match=table["car"][0]):  # a photographed car that the table lacks
        split_fold(photos, table[1:], 0, tmp_path, "x")


def test_folds_are_named_by_numbers_all_and_none(tmp_path):
    for text, numbers in [
        ("all", [0, 1, 2]), ("2, 0,2", [0, 2]), ("none", [None]), ("none,1,0", [0, 1, None]), ("7", [7]),
        ("all,none", [0, 1, 2, None]),
    ]:  # fmt: skip
        assert parse_folds(text, [2, 1, 0]) == numbers
    for text in ("1-2", "", "0,", "-1", "None"):
        with pytest.raises(InputError, match=f"--fold {text}: give a number, several as 0,1, "):
            parse_folds(text, [0, 1])
    assert [fold_name(fold) for fold in (3, None)] == ["3", "none"]
    assert [run_folder(tmp_path, fold).name for fold in (3, None)] == ["fold3", "none"]


def test_a_run_goes_through_its_stages_and_leaves_checkpoint_log_config_and_state(whole):
    checkpoint, records = results(whole)
    small, large = ([16, 32], 16), ([32, 48], 16)
    assert [(record["size"], record["photos"]) for record in records] == [small, small, large, large]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 2), (2, 4), (3, 5), (4, 6)]
    assert records[2]["loss"] < records[0]["loss"]  # the weights are carried over
    shapes = [tuple(call.args[1].shape) for call in BATCHES.call_args_list]
    assert shapes == [(8, 3, 16, 32)] * 4 + [(16, 3, 32, 32)] * 2
    assert validation_batch(16, CONFIG.data) == 10  # validated at once: as many pixels as 16 crops
    rates = [(0.003, step, 4) for step in range(4)] + [(0.001, step, 2) for step in (0, 1)]  # a cosine for each stage
    rates = [lr * engine.rate_factor(step / steps, 1 / steps, 0.1) for lr, step, steps in rates]
    assert [call.args[1] for call in RATES.call_args_list] == pytest.approx(rates)
    best = max(records[2:], key=lambda record: record["dice"])
    facts = read_facts(checkpoint.path)
    assert (facts["fold"], facts["epoch"], facts["dice"]) == (0, best["epoch"], best["dice"])
    assert (facts["folds_digest"], checkpoint.config.model) == (whole.digest, CONFIG.model)
    assert [state.name for state in (whole.folder / "state").iterdir()] == ["epoch-0004"]
    assert not (whole.folder / "tensorboard").exists()


def test_all_folders_and_photos_are_looked_at_before_the_first_fold_is_trained(tiny, demo, tmp_path, capsys):
    first, second = folds = [one_car_fold(demo, tmp_path, number) for number in (0, 1)]
    assert not train_folds(tiny(), folds, first.train, deadline=0.0)
    assert "fold 1" not in capsys.readouterr().err
    assert train_fold(tiny(train={"epochs": 1}), second)
    with pytest.raises(InputError, match="fold1: holds a run"):
        train_folds(tiny(), folds, first.train)
    shutil.copytree(demo / "input", tmp_path / "input")
    photo = next((tmp_path / "input" / "train").iterdir())
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(InputError, match=photo.name):
        train_folds(tiny(), folds, open_train(tmp_path / "input"), overwrite=True)
    assert not (first.folder / "best.safetensors").exists()


def test_a_second_command_at_once_is_refused(tiny, demo, fold):
    with alone_in(fold.folder), pytest.raises(InputError, match="fold0: another command is at work there"):
        train_folds(tiny(), [fold], fold.train, overwrite=True)
    assert not fold.folder.exists()


def test_time_limit_stops_with_a_resumable_state(tiny, fold, monkeypatch, capsys):
    config, looks = tiny(train={"epochs": 2}), itertools.count()
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(looks)))  # about 24 an epoch
    assert not train_fold(config, fold, deadline=10.0)
    assert "no epoch is done yet, --resume begins anew" in capsys.readouterr().err
    looks = itertools.count()
    assert not train_fold(config, fold, deadline=35.0)
    assert next(looks) < 35
    assert "out of time after 1 of 2 epochs; --resume continues" in capsys.readouterr().err
    monkeypatch.undo()
    (record,) = read_records(fold.folder / "log.jsonl")
    write_records(fold.folder / "log.jsonl", [record | {"train_seconds": 1e6}])  # as on a far slower machine
    assert train_fold(config, fold, resume=True, deadline=time.monotonic() + 1000)
    assert len(results(fold)[1]) == 2


def test_the_best_epoch_of_the_last_stage_is_kept(tiny, fold, monkeypatch):
    """An earlier stage's best gives way."""
    weights, dice = {}, {1: 0.99, 2: 0.2, 3: 0.9, 4: 0.3}

    def score(learner, *_):
        number = learner.position.epoch + 1
        weights[number] = {name: tensor.clone() for name, tensor in learner.ema.module.named_parameters()}
        return {"x": dice[number]}

    monkeypatch.setattr(module, "validate", score)
    assert train_fold(tiny(train={"epochs": 3}, earlier_stages=[{"train": {"epochs": 1}}]), fold)
    checkpoint, _ = results(fold)
    facts = read_facts(checkpoint.path)
    assert (facts["epoch"], facts["dice"]) == (3, 0.9)
    assert all(torch.equal(weights[3][name], tensor) for name, tensor in checkpoint.model.named_parameters())


def test_a_run_starts_from_another_runs_weights_of_the_same_fold(tiny, fold, tmp_path):
    path, first = tmp_path / "first" / "fold0" / "best.safetensors", build_model(tiny().model)
    save_checkpoint(path, first, tiny(), 0, 1, 0.9, "of a table with more cars", ["x", *fold.train.cars])
    config = tiny(train={"epochs": 1, "init_from": "first"}, optim={"lr": 1e-12})
    assert train_fold(config, fold)
    assert read_facts(fold.folder / "best.safetensors")["seen_cars"] == sorted(["x", *fold.train.cars])
    weights = dict(results(fold)[0].model.named_parameters())
    assert all(torch.allclose(weights[name], tensor, atol=1e-6) for name, tensor in first.named_parameters())
    assert initial_checkpoint(config.changed(train={"init_from": str(tmp_path / "first")}), fold) == path
    with pytest.raises(InputError, match="has other model settings"):
        build_learner(tiny(model={"decoder_channels": [4] * 5}), path)
    other = replace(fold, train=fold.val, val=fold.train)
    with pytest.raises(InputError, match=rf"/best\.safetensors has learnt from .* validation: {fold.train.cars[0]}"):
        train_fold(config, other, overwrite=True)
    with pytest.raises(InputError, match=r"fold1/best\.safetensors: not a readable checkpoint"):
        train_fold(config, replace(fold, number=1, folder=tmp_path / "tiny" / "fold1"))
    itself = config.changed(train={"init_from": fold.folder.parent.name})
    with pytest.raises(InputError, match=r"is this run's own, which it replaces; give it another --name"):
        train_fold(itself, fold, overwrite=True)
    assert (fold.folder / "best.safetensors").exists()


def test_a_run_goes_on_without_the_run_that_it_starts_from(tiny, fold, tmp_path, monkeypatch):
    path, model = tmp_path / "first" / "fold0" / "best.safetensors", build_model(tiny().model)
    save_checkpoint(path, model, tiny(), 0, 1, 0.9, "x", ["far"])
    config = tiny(train={"epochs": 2, "init_from": "first"})
    monkeypatch.setattr(module, "validate", lambda *_: path.unlink(missing_ok=True) or {"x": 0.5})
    assert train_fold(config, fold)
    assert read_facts(fold.folder / "best.safetensors")["seen_cars"] == sorted(["far", *fold.train.cars])
    assert train_fold(config, fold, resume=True)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture
def all_cars(demo, tmp_path) -> Fold:
    return one_car_fold(demo, tmp_path, None)


def test_a_network_of_all_cars_is_kept_after_its_last_epoch_and_has_no_score(tiny, demo, all_cars, monkeypatch, capsys):
    photos, table = open_train(demo / "input"), read_folds(demo / "folds.csv")
    assert split_fold(photos, table, None, all_cars.folder, "x").train.cars == photos.cars == sorted(table["car"])
    with pytest.raises(InputError, match=table["car"][0]):  # a photographed car that the table lacks
        split_fold(photos, table[1:], None, all_cars.folder, "x")
    best, weights, log = all_cars.folder / "best.safetensors", {}, module.log_epoch

    def end_epoch(learner, record):
        weights.update({name: tensor.clone() for name, tensor in learner.ema.module.named_parameters()})
        assert not best.exists()
        log(learner, record)

    monkeypatch.setattr(module, "log_epoch", end_epoch)
    assert train_folds(tiny(), [all_cars], all_cars.train, tracker="tensorboard")
    checkpoint, records = results(all_cars)
    assert all(torch.equal(weights[name], tensor) for name, tensor in checkpoint.model.named_parameters())
    facts = read_facts(best)
    assert (facts["fold"], facts["dice"], facts["epoch"], facts["seen_cars"]) == (None, None, 2, all_cars.train.cars)
    assert not {"dice", "worst", "photos"} & {key for record in records for key in record}
    first, *epochs, end = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fold")]
    assert first == "fold none: training on 1 cars, no validation"
    assert re.fullmatch(rf"fold none epoch 2/2: loss {records[1]['loss']:.4f}, [\d.]+ min", epochs[1])
    assert end == f"fold none: finished, in {all_cars.folder}"


def test_a_killed_run_on_all_cars_resumes_to_the_same_weights(all_cars, tmp_path):
    killed = replace(all_cars, folder=tmp_path / "killed" / "none")
    assert train_fold(CONFIG, all_cars)
    for function, epoch in (("train_one_epoch", 2), ("save_state", 3)):
        dying = Mock(wraps=getattr(module, function), side_effect=[DEFAULT] * (epoch - 1) + [Killed])
        with patch.object(module, function, dying), pytest.raises(Killed):
            train_fold(CONFIG, killed, resume=True)
    assert train_fold(CONFIG, killed, resume=True)
    whole, resumed = (fold.folder / "best.safetensors" for fold in (all_cars, killed))
    assert read_facts(whole) == read_facts(resumed)
    weights, expected = load_file(resumed), load_file(whole)
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    with pytest.raises(InputError, match="holds a run; continue it with --resume"):
        train_fold(CONFIG, killed)
    with pytest.raises(InputError, match=r"it was another run: budget: None -> 1m"):
        train_fold(CONFIG, killed, resume=True, budget=Budget(60))


def test_all_cars_have_the_epochs_that_the_folds_had_or_that_the_run_began_with(tmp_path, capsys):
    assert with_epochs_of_folds(CONFIG, tmp_path, resume=True) is CONFIG
    for name, epochs, plan in [
        ("fold0", [3, 5], None), ("fold1", [9, 9], {"epochs": [4, 7]}), ("fold2", [0, 8], {"epochs": [0, 8]}),
        ("fold3", [50], None),
    ]:  # fmt: skip
        config = CONFIG.with_epochs(epochs) if len(epochs) == 2 else CONFIG.with_epochs([0, *epochs])
        facts = {"config": config.model_dump(mode="json")} | ({"plan": plan} if plan else {})
        write_json(tmp_path / name / "run.json", facts)
    config = with_epochs_of_folds(CONFIG, tmp_path, resume=True)
    assert [stage.train.epochs for stage in config.stages] == [3, 7]
    assert config.changed(train={"epochs": 1}) == CONFIG.with_epochs([3, 1])
    line = "fold none: 3 + 7 epochs, the median of fold0, fold1, fold2\n"
    assert capsys.readouterr().err == line
    write_json(tmp_path / "none" / "run.json", {"config": CONFIG.with_epochs([6, 2]).model_dump(mode="json")})
    assert with_epochs_of_folds(CONFIG, tmp_path, resume=True) == CONFIG.with_epochs([6, 2])
    assert capsys.readouterr().err == ""
    assert with_epochs_of_folds(CONFIG, tmp_path, resume=False) == config
    (tmp_path / "fold1" / "run.json").write_text("cut")
    with pytest.raises(InputError, match=r"fold1/run\.json: not readable"):
        with_epochs_of_folds(CONFIG, tmp_path, resume=False)


def test_the_script_trains_all_cars_beside_folds_or_with_their_epochs(demo, tmp_path, monkeypatch):
    settings = {key: value for key, value in TINY.items() if key != "name"}
    (experiment := tmp_path / "x.yaml").write_text(yaml.safe_dump(settings))
    command = ["train.py", experiment, "--input", demo / "input", "--folds", demo / "folds.csv", "--runs", tmp_path]
    done = run_script(*command, "--fold", "0,none", "--set", "train.epochs=1")
    for number, val_cars in ((0, 2), (None, 0)):
        facts = json.loads((run_folder(tmp_path / "x", number) / "run.json").read_text())
        assert (facts["config"]["train"]["epochs"], len(facts["val_cars"])) == (1, val_cars)
    assert "fold none: training on 4 cars, no validation\n" in done.stderr
    done = run_script(*command, "--fold", "none", "--resume")
    assert "fold none: continuing after epoch 1\n" in done.stderr
    done = run_script(*command, "--fold", "none", "--resume", "--set", "train.epochs=2", check=False)
    assert "none: cannot be resumed, it was another run: config.train.epochs: 1 -> 2" in done.stderr
    monkeypatch.setattr("carvana.training.dry_run.cost_lines", lambda footprint: [])
    done = run_script(*command, "--fold", "none", "--dry-run", "--no-timing")
    assert ("1 epochs, the median of fold0\n" in done.stderr, "32x48, 1 epochs" in done.stdout) == (True, True)
    assert done.stdout.splitlines()[-1].startswith("fold none on a T4: ")
    done = run_script(*command, "--fold", "none", "--dry-run", "--no-timing", "--set", "train={epochs: 4}")
    assert ("median" in done.stderr, "32x48, 4 epochs" in done.stdout) == (False, True)


def test_all_cars_start_from_another_runs_network_of_all_cars(tiny, all_cars, tmp_path):
    path, config = tmp_path / "first" / "none" / "best.safetensors", tiny(train={"init_from": "first"})
    with pytest.raises(InputError, match=r"first/none/best\.safetensors: not a readable checkpoint"):
        initial_checkpoint(config, all_cars)
    save_checkpoint(path, build_model(config.model), config, None, 1, None, "of another table", ["x"])
    assert initial_checkpoint(config, all_cars) == path


@pytest.mark.parametrize(("function", "epoch"), [("validate", 2), ("save_state", 2), ("train_one_epoch", 3)])
def test_a_killed_run_resumes_to_the_weights_of_a_whole_one(whole, tmp_path, function, epoch):
    """And to a point an epoch in TensorBoard, of which the whole run knew nothing."""
    killed = replace(whole, folder=tmp_path / "killed" / "fold0")
    dying = Mock(wraps=getattr(module, function), side_effect=[DEFAULT] * (epoch - 1) + [Killed])
    with patch.object(module, function, dying), pytest.raises(Killed):
        train_fold(CONFIG, killed, tracker="tensorboard")
    (killed.folder / "state" / "unfinished").mkdir()
    assert results(killed)[0].config.data.size == (16, 32)  # it can be evaluated
    for _ in range(2):  # the second time there is nothing to do
        assert train_fold(CONFIG, killed, resume=True, tracker="tensorboard")
    weights, expected = (results(fold)[0].model.state_dict() for fold in (killed, whole))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    assert len(list((killed.folder / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(killed.folder / "tensorboard"), {"scalars": 0}).Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(points) == {*CURVES, "rate/encoder", "rate/lr", "train/photos_per_second"}
    for tag, key in CURVES.items():
        assert points[tag] == [(r["epoch"], pytest.approx(r[key])) for r in results(whole)[1]]
    assert [(step, pytest.approx(2 * rate)) for step, rate in points["rate/encoder"]] == points["rate/lr"]


@pytest.mark.parametrize("models", [0.5, 1.05])  # a checkpoint is 1, the optimizer's state a little more
def test_a_full_disk_stops_a_run_and_leaves_no_half_state(whole, tmp_path, models):
    full = replace(whole, folder=tmp_path / "full" / "fold0")
    most = models * (whole.folder / "best.safetensors").stat().st_size
    with full_disk(int(most)), pytest.raises(OSError, match=f"{full.folder}"):
        train_fold(CONFIG, full)
    assert not list(full.folder.glob("state/epoch-*"))


@pytest.fixture
def copied(whole, tmp_path):
    return replace(whole, folder=shutil.copytree(whole.folder, tmp_path / "copied" / "fold0"))


def test_a_run_is_neither_overwritten_by_chance_nor_resumed_as_another(whole, copied):
    with pytest.raises(InputError, match="holds a run; continue it with --resume or replace it with --overwrite"):
        train_fold(CONFIG, copied)
    refusal = "cannot be resumed, it was another run: "
    with pytest.raises(InputError, match=refusal + r"config\.optim\.lr: 0\.001 -> 0\.5"):
        train_fold(CONFIG.changed(optim={"lr": 0.5}), copied, resume=True)
    swapped = replace(copied, train=whole.val, val=whole.train, digest="another digest")
    with pytest.raises(InputError, match=refusal + r"folds_digest: \w+ -> another digest; train_cars"):
        train_fold(CONFIG, swapped, resume=True)
    loading = {"num_workers": 1, "cache_gib": 0}  # and where the encoder's weights came from: they change no weights
    stage = STAGE | {"data": STAGE["data"] | loading}
    less = {"micro_batch": 1}  # as a lack of memory advises
    moved = CONFIG.changed(model={"weights": "elsewhere.pth"}, data=loading, train=less, earlier_stages=[stage])
    assert train_fold(moved, copied, resume=True)
    best = copied.folder / "best.safetensors"
    assert best.read_bytes() == (whole.folder / "best.safetensors").read_bytes()
    assert train_fold(CONFIG.changed(train={"epochs": 1}, earlier_stages=()), copied, overwrite=True)
    assert len(results(copied)[1]) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "state"), "no state to resume from"),
        (lambda folder: (folder / "run.json").unlink(), r"run\.json: not readable"),
        (lambda folder: (folder / "state/epoch-0004/optimizer.bin").write_bytes(b"cut"), "epoch-0004: damaged"),
        (lambda folder: (folder / "state/epoch-0004/model.safetensors").write_bytes(b""), "epoch-0004: damaged"),
    ],
)
def test_what_cannot_be_resumed_is_left_as_it_is(copied, damage, message):
    damage(copied.folder)
    before = (copied.folder / "best.safetensors").read_bytes()
    with pytest.raises(InputError, match=f"{message}.*; start anew with --overwrite"):
        train_fold(CONFIG, copied, resume=True)
    assert (copied.folder / "best.safetensors").read_bytes() == before


REFUSALS = {
    ("--tracker", "paper"): "--tracker paper: choose from none, tensorboard",
    ("--tracker", "tensorboard"): "--tracker tensorboard: the package is not installed; pip install tensorboard",
    ("--resume", "--overwrite"): "--resume and --overwrite: choose one",
    ("--no-timing",): "--no-timing: only with --dry-run",
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.items())
def test_what_cannot_be_is_refused_before_anything_is_read(options, message, monkeypatch):
    monkeypatch.setattr("carvana.training.tracking.get_available_trackers", lambda: [])
    result = run_script("train.py", "demo", *options, "--input", "absent", check=False)
    assert (result.returncode, result.stderr) == (2, f"error: {message}\n")
