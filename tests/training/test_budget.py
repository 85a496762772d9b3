"""A training that ends in time: planned, planned anew, resumed; and the same as one of as many epochs given by hand."""

import itertools
import json
from dataclasses import replace
from unittest.mock import DEFAULT, Mock, patch

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import TINY, run_script
from safetensors.torch import load_file
from varied_runs import one_car_fold

from carvana.config import parse_config
from carvana.data.images import open_train
from carvana.errors import InputError
from carvana.log import read_records
from carvana.models.checkpoint import read_facts
from carvana.training import budget as module
from carvana.training import engine, pace
from carvana.training import fold as runs
from carvana.training.budget import adapt, plan_epochs
from carvana.training.fold import train_fold
from carvana.training.learner import build_learner
from carvana.training.optim import rate_factor
from carvana.training.pace import Pace, measure_paces
from carvana.training.run import Budget, read_run, stage_epochs
from carvana.training.split import Fold
from carvana.training.state import saved_states

STAGE = {"data": {"size": [16, 32]}, "train": {"epochs": 2}}
CONFIG = parse_config(TINY | {"train": TINY["train"] | {"epochs": 4}, "earlier_stages": [STAGE]}, "test")
PACES = [Pace(3, 2), Pace(12, 10)]  # seconds of an epoch in the two stages
THREE = [Pace(3, 2), Pace(6, 5), Pace(12, 10)]


@pytest.fixture
def fold(demo, tmp_path) -> Fold:
    return one_car_fold(demo, tmp_path)


def is_same(first: Fold, second: Fold) -> bool:
    """The best epoch and its settings, and the weights after the last one, to the last bit."""
    facts = [read_facts(fold.folder / "best.safetensors") for fold in (first, second)]
    states = [load_file(saved_states(fold.folder / "state")[-1] / "model.safetensors") for fold in (first, second)]
    return facts[0] == facts[1] and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_stages_keep_their_shares_and_what_these_leave_goes_to_the_last_one():
    one = parse_config(TINY, "one")
    assert plan_epochs(one, [Pace(20, 10)], Budget(100)) == [8]  # 20 + 7 x 10 of 97 s
    assert plan_epochs(one, [Pace(20, 10)], Budget(100), measuring=20) == [6]
    assert plan_epochs(CONFIG, [Pace(2, 2), Pace(10, 10)], Budget(300)) == [15, 26]  # 13 and 26 leave 5 s
    assert CONFIG.with_epochs([15, 26]).stages[0].train.epochs == 15
    assert CONFIG.with_epochs([0, 3]) == CONFIG.changed(train={"epochs": 3}, earlier_stages=())


def test_a_budget_that_is_too_short_is_refused_with_what_is_needed():
    with pytest.raises(InputError, match=r"a budget of 10s is too short: tiny needs 16s on this machine, an epoch of"):
        plan_epochs(CONFIG, PACES, Budget(10))
    assert plan_epochs(CONFIG, PACES, Budget(16)) == [1, 1]


def simulate(planned: list[int], paces: list[Pace], slowdowns: dict[int, float]) -> tuple[list[int], list[float]]:
    """The epochs of a run of 300 s whose epochs, from these on, take so many times as long; and their seconds."""
    epochs, spent, slowdown = planned, [], 1.0
    while len(spent) < sum(epochs):
        slowdown = slowdowns.get(len(spent), slowdown)
        measured = [pace.later if n else pace.first for pace, e in zip(paces, epochs, strict=True) for n in range(e)]
        spent.append(slowdown * measured[len(spent)])
        epochs = adapt(epochs, planned, paces, spent, 300 - sum(spent), spare=9)
        planned = [*map(max, planned, epochs)]
    return epochs, spent


@pytest.mark.parametrize(("planned", "paces"), [([14, 26], PACES), ([18, 14, 18], THREE), ([29], [Pace(10, 10)])])
@pytest.mark.parametrize("slowdown", [0.5, 1.0, 1.02, 1.3, 2.0, 5.0, 100.0])
def test_a_slow_machine_begins_one_epoch_at_most_after_the_end(planned, paces, slowdown):
    for begin in range(sum(planned)):
        epochs, spent = simulate(planned, paces, {begin: slowdown})
        begun_late = [number for number in range(len(spent)) if sum(spent[:number]) >= 300]
        assert len(begun_late) <= 1
        assert epochs[-1] >= 1
        assert epochs == planned or slowdown != 1
        assert all(number <= most for number, most in zip(epochs, planned, strict=True)) or slowdown < 1
    _, spent = simulate(planned, paces, {0: slowdown})  # is seen at once
    assert sum(spent) <= 300 + slowdown * paces[-1].later / 2 or slowdown == 100
    assert sum(spent) > 300 - 9 - 1.5 * slowdown * paces[-1].later


def test_a_disturbance_that_ends_gives_the_epochs_back():
    planned = [14, 26]
    assert simulate(planned, PACES, {5: 30, 6: 1})[0] == [14, 21]  # 58 s are gone, of which 9 s were not planned for
    epochs, spent = simulate(planned, PACES, {5: 8, 8: 1})
    assert 280 < sum(spent) <= 310
    assert sum(simulate(planned, PACES, {5: 8})[0]) < sum(epochs)


def test_the_rate_has_no_jump_where_epochs_change_and_ends_at_zero(tiny):
    learner, rates, steps = build_learner(tiny(train={"epochs": 20})), [], 10
    changes = {0: 20, 1: 16, 8: 11, 9: 15}  # epochs by how many are done
    while learner.position.epoch < learner.config.epochs:
        epoch = learner.position.epoch
        if epoch in changes:
            learner.change_epochs(learner.config.with_epochs([changes[epoch]]))
        begin, end = learner.passed(epoch), learner.passed(epoch + 1)
        step = (end - begin) / steps
        rates += [rate_factor(begin + number * step, step, 0.1) for number in range(steps)]
        learner.position.epoch += 1
    assert (len(rates), end) == (150, pytest.approx(1))
    assert max(abs(before - after) for before, after in itertools.pairwise(rates)) < 0.07  # 0.05 as it rises
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] < 0.001


def test_a_budgeted_run_is_that_of_the_same_epochs_given_by_hand(fold, monkeypatch, capsys):
    """Measuring leaves no trace in it."""
    monkeypatch.setattr(pace, "SECONDS", 0)
    measured = Mock(wraps=measure_paces)
    monkeypatch.setattr(module, "measure_paces", measured)
    monkeypatch.setattr(module, "plan_epochs", lambda *_: [1, 2])
    monkeypatch.setattr(module, "adapt", lambda epochs, *_: epochs)  # many more would fit
    by_hand = replace(fold, folder=fold.folder.with_name("by_hand"))
    train_fold(CONFIG.with_epochs([1, 2]), by_hand)
    assert train_fold(CONFIG, fold, budget=Budget(3600))
    assert measured.call_count == 1
    assert is_same(fold, by_hand)
    facts = json.loads((fold.folder / "run.json").read_text())
    assert (facts["budget"], facts["config"]["train"]["epochs"], facts["plan"]["epochs"]) == ("1h", 2, [1, 2])
    assert all(first >= later > 0 for first, later in facts["plan"]["paces"])
    assert "fold 0: 1 epochs of 16x32, " in capsys.readouterr().err


def test_measuring_has_a_few_steps_of_each_stage_and_a_car_of_validation(fold, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0)
    steps, validated = Mock(wraps=engine.forward_backward), Mock(wraps=pace.validate)
    monkeypatch.setattr(engine, "forward_backward", steps)
    monkeypatch.setattr(pace, "validate", validated)
    paces = measure_paces(CONFIG, fold, with_validation=False)
    assert [call.args[1].shape[2:] for call in steps.call_args_list] == [(16, 32)] * 4 + [(32, 48)] * 4
    assert validated.call_count == 0
    assert all(pace.first >= pace.later > 0 for pace in paces)
    monkeypatch.setattr(pace, "measure_training", lambda *_: Pace(1.0, 1.0))
    assert all(pace.later > 1 for pace in measure_paces(CONFIG, fold, with_validation=True))
    assert validated.call_count == 2


def test_each_fifth_held_out_photo_is_validated_and_planned_for(fold, demo, monkeypatch):
    config = CONFIG.changed(train={"validate_every": 5, "epochs": 1}, earlier_stages=())
    assert train_fold(config, fold)
    (record,) = read_records(fold.folder / "log.jsonl")
    assert record["photos"] == 4  # of one car's 16: the first, sixth, eleventh and last
    monkeypatch.setattr(pace, "seconds_of", lambda *_: 8.0)  # of a car
    photos = open_train(demo / "input")
    assert len(photos.cars) == 4
    learner = build_learner(config)
    assert pace.measure_validation(learner, photos) == 8 * 13 / 4
    seconds = iter([8.0, 2.0])  # a GPU's first batch has cuDNN's choice of algorithms in it
    monkeypatch.setattr(pace, "seconds_of", lambda *_: next(seconds))
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    assert pace.measure_validation(learner, photos) == 2 * 13 / 4


run_epoch = runs.run_epoch


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def slow(learner, photos, fold, deadline) -> dict:
    """An epoch whose log says that it took 6 s, or 12 from the third on."""
    return run_epoch(learner, photos, fold, deadline) | {
        "train_seconds": 5 + 6 * (learner.position.epoch > 1),
        "val_seconds": 1,
    }


def test_a_resumed_run_keeps_its_plan_measures_nothing_and_goes_on_as_if_it_had_not_stopped(fold, monkeypatch, capsys):
    """Also where the last of 2 + 4 epochs of 6 s was taken out, as the third and the fourth took 12."""
    monkeypatch.setattr(module, "measure_paces", lambda *_, **__: [Pace(6, 6), Pace(6, 6)])
    monkeypatch.setattr(runs, "run_epoch", slow)
    killed, budget = replace(fold, folder=fold.folder.with_name("killed")), Budget(40)
    assert train_fold(CONFIG, fold, budget=budget)
    assert len(read_records(fold.folder / "log.jsonl")) == 5
    assert "fold 0: the machine's pace has changed: 2 + 3 epochs now" in capsys.readouterr().err
    for saves in (3, 1):  # killed when the fourth and when the fifth epoch is to be saved
        dying = Mock(wraps=runs.save_state, side_effect=[DEFAULT] * saves + [Killed])
        with patch.object(runs, "save_state", dying), pytest.raises(Killed):
            train_fold(CONFIG, killed, resume=True, budget=budget)
        monkeypatch.setattr(module, "measure_paces", None)
    assert train_fold(CONFIG, killed, resume=True, budget=budget)
    assert is_same(killed, fold)


def test_a_plan_of_which_no_epoch_was_done_is_made_anew_by_the_machine_that_goes_on(fold, monkeypatch):
    slow_machine, fast_machine = ([Pace(seconds, seconds)] * 2 for seconds in (9, 3))
    monkeypatch.setattr(module, "measure_paces", Mock(side_effect=[slow_machine, fast_machine]))
    with patch.object(runs, "run_epoch", side_effect=Killed), pytest.raises(Killed):
        train_fold(CONFIG, fold, budget=Budget(20))
    monkeypatch.setattr(module, "adapt", lambda epochs, *_: epochs)
    assert train_fold(CONFIG, fold, resume=True, budget=Budget(20))
    assert sum(stage_epochs(read_run(fold.folder))) == 6


def test_a_network_of_all_cars_fills_its_budget_without_validation_and_is_kept_at_the_end(fold, monkeypatch):
    """Though the plan has changed on the way, as above."""
    all_cars = replace(fold, number=None, val=None, folder=fold.folder.with_name("none"))
    monkeypatch.setattr(pace, "measure_training", lambda *_: Pace(6, 6))
    monkeypatch.setattr(pace, "measure_validation", None)
    monkeypatch.setattr(runs, "run_epoch", slow)
    kept = Mock(wraps=runs.save_checkpoint)
    with patch.object(runs, "save_checkpoint", kept):
        assert train_fold(CONFIG, all_cars, budget=Budget(42))
    assert [record["epoch"] for record in read_records(all_cars.folder / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert [call.args[4] for call in kept.call_args_list] == [5]
    assert stage_epochs(read_run(all_cars.folder)) == [2, 3]


def test_another_budget_or_none_is_refused_in_one_line(fold, monkeypatch):
    monkeypatch.setattr(module, "measure_paces", lambda *_, **__: [Pace(1, 1), Pace(1, 1)])
    assert train_fold(CONFIG, fold, budget=Budget(3))
    refusal = "cannot be resumed, it was another run: "
    with pytest.raises(InputError, match=refusal + r"budget: 3s -> 1m: give its settings"):
        train_fold(CONFIG, fold, resume=True, budget=Budget(60))
    with pytest.raises(InputError, match=refusal + r"budget: 3s -> None: give its settings"):
        train_fold(CONFIG, fold, resume=True)
    with pytest.raises(InputError, match=refusal + r"config\.optim\.lr: 0\.001 -> 0\.5: give"):
        train_fold(CONFIG.changed(optim={"lr": 0.5}), fold, resume=True, budget=Budget(3))


def test_the_script_takes_a_time_and_shows_its_plan_without_training(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_paces", lambda *_, **__: [Pace(60, 30)])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({key: TINY[key] for key in TINY if key != "name"}))
    words = ["--input", demo / "input", "--folds", demo / "folds.csv", "--runs", "runs", "--dry-run", "--no-timing"]
    result = run_script("train.py", "tiny.yaml", *words, "--budget", "5m", cwd=tmp_path)
    assert "--budget 5m: 2 folds take 10m in all\n" in result.stderr
    assert "fold 1: 8 epochs of 32x48, 30.0 s each: 4m30s, 0 s of them measuring" in result.stderr
    assert not (tmp_path / "runs").exists()
    wrong = run_script("train.py", "tiny.yaml", *words, "--budget", "5", cwd=tmp_path, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("error: --budget 5: give a time such as 30m, ")
