"""fp16 with a scaler, as on a T4, computed on the CPU: from the step to the resumed run and its masks."""

import itertools
import json
import math
import weakref
from dataclasses import replace
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import SRC
from torch import nn
from torch.utils.data import DataLoader
from varied_runs import one_car_fold

from carvana.data.loader import Loading
from carvana.device import Device
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.log import read_records
from carvana.models.checkpoint import load_checkpoint, read_facts
from carvana.prediction.predictor import Predictor, fold_members
from carvana.training import fold as module
from carvana.training.engine import OutOfTime, train_one_epoch
from carvana.training.fold import train_fold, train_folds
from carvana.training.learner import Learner, build_learner

SMALL = ["data.size=[32,64]", "data.crop=null", "data.fit=resize", "train.batch_size=2", "train.micro_batch=null"]
EXPERIMENTS = {}  # of those for a T4 that have the same network, the first one
for path in sorted((SRC / "experiments").glob("*.yaml")):
    config = load_experiment(str(path), SRC / "experiments", [*SMALL, "train.precision=fp16"])
    if "Fits a T4" in path.read_text():
        EXPERIMENTS.setdefault(str((config.model, config.loss)), config.changed(earlier_stages=()))


def train(learner: Learner, steps: int) -> dict:
    """On the same two photos of noise in each step."""
    shape, generator = (2, 3, *learner.config.data.size), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return train_one_epoch(learner, DataLoader([(image, image[:1]) for image in images] * steps, 2), math.inf)


@pytest.fixture
def tensor_cores(monkeypatch):
    """fp16 convolutions that sum up in float32, as a T4's do; PyTorch's own on a CPU take several times as long."""
    convolve = nn.Conv2d._conv_forward

    def forward(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return convolve(self, *tensors)
        rounded = [tensor if tensor is None else tensor.half().float() for tensor in tensors]
        with torch.autocast("cpu", enabled=False):
            return convolve(self, *rounded).half()

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", forward)


@pytest.mark.parametrize("config", EXPERIMENTS.values(), ids=lambda config: config.name)
def test_each_experiment_takes_ten_steps(config, tensor_cores):
    learner = build_learner(config, pretrained=False)
    losses, loss = [], learner.loss
    learner.loss = lambda logits, masks: losses.append(loss(logits, masks)) or losses[-1]
    skipped = train(learner, 10)["skipped_steps"]
    assert losses[-1].mean() < losses[0].mean()
    assert (learner.accelerator.mixed_precision, skipped < 10) == ("fp16", True)
    assert learner.accelerator.scaler.get_scale() == 65536 / 2**skipped
    assert all(torch.isfinite(tensor).all() for tensor in learner.ema.module.state_dict().values())


def test_an_overflow_skips_its_step_and_lowers_the_scale(tiny, capsys):
    learner = build_learner(tiny(train={"precision": "fp16", "batch_size": 2}))
    loss, factors = learner.loss, itertools.chain([1.0], [2.0**30] * 16, itertools.repeat(1.0))
    learner.loss = lambda logits, masks: loss(logits, masks) * next(factors)
    assert train(learner, 18)["skipped_steps"] == 16  # more than ten, in which a scale is found
    assert learner.accelerator.scaler.get_scale() == 1
    assert "step skipped" not in capsys.readouterr().err
    learner.loss = lambda logits, masks: loss(logits, masks) * 2.0**60
    with pytest.raises(InputError, match="10 steps in a row"):
        train(learner, 20)


@pytest.fixture
def fold(demo, tmp_path):
    return one_car_fold(demo, tmp_path)


def test_a_run_is_continued_on_another_machine_in_its_precision(tiny, fold, monkeypatch, capsys):
    """An epoch each in float32, fp16 and float32, with and without the state of a scaler."""
    monkeypatch.setattr(module, "validate", lambda learner, *_: {"x": learner.position.epoch})  # the last is the best
    for precision, setting, ending in (
        ("no", "auto", OutOfTime),
        ("fp16", "auto", OutOfTime),
        ("bf16", "fp32", DEFAULT),
    ):
        config = tiny(train={"epochs": 3, "precision": setting})
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr("carvana.device.native_precision", lambda _, name=precision: name)
        monkeypatch.setattr(module, "train_one_epoch", Mock(wraps=train_one_epoch, side_effect=[DEFAULT, ending]))
        assert train_fold(config, fold, resume=True) == (ending is DEFAULT)
        end = json.loads((fold.folder / "end.json").read_text())
        assert end == {"finished": ending is DEFAULT, "epochs": len(read_records(fold.folder / "log.jsonl"))}
    assert [record["precision"] for record in read_records(fold.folder / "log.jsonl")] == ["no", "fp16", "no"]
    assert "fold 0: continuing after epoch 1; precision: no -> fp16\n" in capsys.readouterr().err
    assert read_facts(fold.folder / "best.safetensors")["precisions"] == ["no", "fp16", "no"]


def test_a_killed_run_in_fp16_resumes_to_the_same_weights_and_predicts_in_fp16(tiny, fold, monkeypatch):
    config, runs = tiny(train={"precision": "fp16"}), {}
    for name, endings in (("whole", [DEFAULT] * 2), ("killed", [DEFAULT, OutOfTime])):
        runs[name] = replace(fold, folder=fold.folder.with_name(name))
        with monkeypatch.context() as patch:
            patch.setattr(module, "train_one_epoch", Mock(wraps=train_one_epoch, side_effect=endings))
            train_fold(config, runs[name])
    assert train_fold(config, runs["killed"], resume=True)
    whole, killed = (load_checkpoint(run.folder / "best.safetensors") for run in runs.values())
    assert all(
        torch.equal(tensor, killed.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items()
    )
    probs = {}
    for precision in ("fp16", "no"):
        device = Device(torch.device("cpu"), precision)
        checkpoint = load_checkpoint(whole.path)
        predictor = Predictor([fold_members([checkpoint], ["identity"], device)], device, Loading(2, 0))
        probs[precision] = next(predictor.predict(fold.val, fold.val.image_ids[:1])).probs
    assert 0 < (probs["fp16"] - probs["no"]).abs().max() < 0.01


def test_a_folds_memory_is_given_back_before_the_next_one(tiny, fold, monkeypatch):
    learners, build = [], module.build_learner
    monkeypatch.setattr(module, "build_learner", lambda *args, **options: remember(build(*args, **options)))

    def remember(learner: Learner) -> Learner:
        assert all(reference() is None for references in learners for reference in references)
        learners.append([weakref.ref(part) for part in (learner.model, learner.ema.module, learner.optimizer)])
        return learner

    folds = [replace(fold, folder=fold.folder.with_name(f"fold{number}")) for number in range(2)]
    assert train_folds(tiny(train={"epochs": 1}), folds, fold.val)
    assert len(learners) == 2
