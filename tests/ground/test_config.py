"""Settings are strict about names and values, and every experiment that ships builds and needs what it says."""

import math
import pickle
import re

import pytest
import torch
from pydantic import ValidationError

from carvana.command import EXPERIMENTS
from carvana.config import Config, LossConfig, differences, parse_config
from carvana.data.augmentations import build_augmentation
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.models import build_model
from carvana.training.footprint import GIB, OVERHEAD, T4, Footprint

FOR_A_CPU = {"demo", "unet_lite0", "unet_lite2", "vanilla_unet"}
FIGURE = re.compile(r"^# Fits a T4 \(([\d.]+) GiB\): one step takes ([\d.]+) GiB in fp16", re.MULTILINE)
STAGED = Config(
    name="x", data={"size": [512, 768], "augmentation": "none"}, loss={"bce": 1}, train={"epochs": 2, "batch_size": 4},
    earlier_stages=[
        {"data": {"size": [256, 384]}, "train": {"epochs": 3, "batch_size": 16}, "optim": {"lr": 0.01}},
        {"train": {"epochs": 1}, "loss": {"soft_dice": 1}},
    ],
)  # fmt: skip
WRONG = {  # overrides
    "optim.lrr=1": r"optim\.lrr: no such setting; did you mean lr\?",
    "optimizer.lr=1": "optimizer: no such setting; did you mean optim",
    "optim.zzz=1": "optim.zzz: no such setting; choose from optimizer, lr",
    "optim.lr=-1": r"optim\.lr = -1: .*greater than 0", "data.size=[512]": "data.size",
    "train.seed=20261127120000": r"train\.seed = 20261127120000: .*less than 2147483648",
    "data.fit=stretch": "data.fit = 'stretch': .*'resize' or 'pad'",
    "data.crop=[1024,64]": r"data.crop = \[1024, 64\]: .*larger than data.size, 256x384",
    "earlier_stages=[{data: {size: [64, 96]}}]": "earlier_stages: number 0 has no train.epochs of its own",
    "earlier_stages=[{train: {epochs: 1, seed: 3}}]": "earlier_stages: number 0 cannot change seed",
    "earlier_stages=[{train: {epochs: 1}, data: {photos: hq}}]": "earlier_stages: number 0 cannot change photos",
    "earlier_stages=[{train: {epochs: 1}, optim: {weight_decay: 0}}]": "earlier_stages: number 0 cannot change weight",
    "earlier_stages=[{train: {epochs: 1}, data: [256, 384]}]": "data = .*: .*dictionary",
    "train.init_from=2024-13-45": "not valid YAML: month",
    "earlier_stages=[{train: {epochs: 1}, model: {}}]": "earlier_stages: number 0 cannot change model",
    "earlier_stages=[{train: {epochs: 0}}]": "train.epochs = 0: .*greater than 0",
    "earlier_stages=[{train: {epochs: 1}, data: {sise: 3}}]": r"data\.sise: no such setting; did you mean size",
    "train.epochs": "write --set group.key=value", "name=x": "name: it is the file's own",
    "train.epochs=[": "not valid YAML", "loss=bce": "loss = 'bce': .*dictionary",
    "train={epochs: 1, epochs: 2}": "not valid YAML: epochs is given twice",
    "loss={}": "name at least one term: bce",
    "loss={border_bce_dice: {rign: 15}}": r"border_bce_dice\.rign: no such setting; did you mean ring",
    "loss={focal: {alpha: 1}}": r"focal\.alpha = 1: .*less than 1", "loss={bce: .nan}": r"bce\.weight = nan: .*finite",
    "loss={border_bce_dice: {ring: 2.5}}": r"border_bce_dice\.ring = 2\.5: .*integer",
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_stops_with_key_value_and_what_is_allowed(override):
    with pytest.raises(InputError, match=WRONG[override]) as error:
        load_experiment("demo", EXPERIMENTS, [override])
    assert "\n" not in str(error.value)


def test_overrides_pass_through_validation_and_an_unknown_experiment_lists_the_known():
    overrides = ["optim.lr=3e-4", "data.size=[64, 96]", "loss={bce: 2}", "train.precision=fp32"]
    config = load_experiment("demo", EXPERIMENTS, overrides, name="x")
    assert (config.optim.lr, config.data.size, config.name, config.train.precision) == (3e-4, (64, 96), "x", "fp32")
    assert config.loss == LossConfig(bce={"weight": 2})
    with pytest.raises(InputError, match=r"no such experiment; choose from .*demo"):
        load_experiment("dmo", EXPERIMENTS)


def test_stages_change_what_they_name_and_end_with_the_settings_themselves():
    first, second, last = STAGED.stages
    assert (first.data.size, first.data.augmentation, first.train.batch_size) == ((256, 384), "none", 16)
    assert (first.optim.lr, first.train.precision, first.loss) == (0.01, "auto", LossConfig(bce=1))
    assert (second.data.size, second.train.batch_size, second.loss) == ((512, 768), 4, LossConfig(soft_dice=1))
    assert last is STAGED
    assert STAGED.stages[0] is first  # validated once
    stages, epochs = zip(*map(STAGED.stage_of, range(7)), strict=True)
    assert (stages, epochs) == ((first, first, first, second, last, last, last), (0, 1, 2, 0, 0, 1, 2))
    assert STAGED.epochs == 6


def test_a_config_is_frozen_survives_json_and_pickle_and_changes_are_validated_and_named():
    with pytest.raises(ValidationError):
        STAGED.name = "y"
    assert parse_config(STAGED.model_dump(mode="json"), "test") == pickle.loads(pickle.dumps(STAGED)) == STAGED
    config = STAGED.changed(train={"epochs": 5}, loss={"focal": 1})
    assert (config.train.epochs, config.train.batch_size, config.loss.terms.keys()) == (5, 4, {"focal"})
    assert (config.stages[1].train.batch_size, config.stages[0].loss) == (4, config.loss)
    with pytest.raises(ValidationError):
        config.changed(train={"epochs": 0})
    before, after = STAGED.model_dump(), STAGED.changed(optim={"lr": 0.5}, loss={"soft_dice": 1}).model_dump()
    losses = ["loss.bce.weight: 1.0 -> None", "loss.soft_dice.weight: None -> 1.0"]
    assert (differences(before, before), differences(before, after)) == ([], [*losses, "optim.lr: 0.001 -> 0.5"])
    before, after = ({"digests": [*["same"] * 20, last]} for last in "ab")
    assert differences(before, after) == ["digests: ['a'] -> ['b']"]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_gives_logits_of_any_photo_and_fits_a_t4_as_its_comment_says(path):
    config, comment = load_experiment(path.stem, EXPERIMENTS), path.read_text()
    assert (config.name, comment[:2]) == (path.stem, "# ")
    for stage in config.stages:
        build_augmentation(stage.data.augmentation)
    model = build_model(config.model, pretrained=False).eval()
    assert model.network.multiple in (16, 32)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 70, 100, dtype=torch.uint8)).shape == (1, 1, 70, 100)
    if path.stem not in FOR_A_CPU:
        largest = max(config.stages, key=lambda stage: math.prod(stage.data.size) * stage.train.batch_size)
        needed = Footprint(largest).configured_bytes("fp16") + OVERHEAD
        card, figure = map(float, FIGURE.search(comment).groups())
        assert (card, figure) == (T4 / GIB, pytest.approx(needed / GIB, rel=0.05))
        assert needed < 0.85 * T4
