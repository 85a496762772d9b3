import pytest
from pydantic import ValidationError

from carvana.command import EXPERIMENTS
from carvana.config import Config, differences, parse_config
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.models import build_model

SHIPPED = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


@pytest.mark.parametrize("experiment", SHIPPED)
def test_shipped_experiments_load_and_say_what_they_are_for(experiment):
    config = load_experiment(experiment, EXPERIMENTS)
    assert config.name == experiment
    assert build_model(config.model, pretrained=False).network.multiple in (16, 32)
    assert (EXPERIMENTS / f"{experiment}.yaml").read_text().startswith("# ")


def test_overrides_pass_through_validation():
    config = load_experiment(
        "demo", EXPERIMENTS, ["optim.lr=3e-4", "data.size=[64, 96]", "loss={bce: 2}", "train.precision=fp32"], name="x"
    )
    assert (config.optim.lr, config.data.size, config.loss, config.name) == (3e-4, (64, 96), {"bce": 2.0}, "x")
    assert config.train.precision == "fp32"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"optim\.lrr: no such setting; did you mean lr\?"),
        ("optimizer.lr=1", "optimizer: no such setting; did you mean optim"),
        ("optim.zzz=1", "optim.zzz: no such setting; choose from lr, schedule, encoder_lr_factor"),
        ("optim.lr=-1", r"optim\.lr = -1: .*greater than 0"),
        ("data.size=[512]", "data.size"),
        ("data.fit=stretch", "data.fit = 'stretch': .*'resize' or 'pad'"),
        ("loss={bcee: 1}", "no loss is named bcee; choose from bce, soft_dice"),
        ("data.crop=[1024,64]", r"data.crop = \[1024, 64\]: .*larger than data.size, 256x384"),
        ("earlier_stages=[{data: {size: [64, 96]}}]", "earlier_stages: number 0 has no train.epochs of its own"),
        ("earlier_stages=[{train: {epochs: 1, seed: 3}}]", "earlier_stages: number 0 cannot change seed"),
        ("earlier_stages=[{train: {epochs: 1}, model: {}}]", "earlier_stages: number 0 cannot change model"),
        ("earlier_stages=[{train: {epochs: 0}}]", "train.epochs = 0: .*greater than 0"),
        ("earlier_stages=[{train: {epochs: 1}, data: {sise: 3}}]", r"data\.sise: no such setting; did you mean size"),
        ("train.epochs=0", "train.epochs = 0: .*greater than 0"),
        ("train.epochs", "write --set group.key=value"),
        ("name=x", "name: it is the file's own"),
        ("train.epochs=[", "not valid YAML"),
    ],
)
def test_a_wrong_setting_stops_with_key_value_and_what_is_allowed(override, message):
    with pytest.raises(InputError, match=message) as error:
        load_experiment("demo", EXPERIMENTS, [override])
    assert "\n" not in str(error.value)


def test_an_unknown_experiment_lists_the_known():
    with pytest.raises(InputError, match=r"no such experiment; choose from .*demo"):
        load_experiment("dmo", EXPERIMENTS)


def test_config_is_frozen_and_survives_json():
    config = Config(name="x")
    with pytest.raises(ValidationError):
        config.name = "y"
    assert parse_config(config.model_dump(mode="json"), "test") == config


def test_stages_change_what_they_name_and_end_with_the_settings_themselves():
    config = Config(
        name="x",
        data={"size": [512, 768], "augmentation": "none"},
        loss={"bce": 1},
        train={"epochs": 2, "batch_size": 4},
        earlier_stages=[
            {"data": {"size": [256, 384]}, "train": {"epochs": 3, "batch_size": 16}, "optim": {"lr": 0.01}},
            {"train": {"epochs": 1}, "loss": {"soft_dice": 1}},
        ],
    )
    first, second, last = config.stages
    assert (first.data.size, first.data.augmentation, first.train.batch_size) == ((256, 384), "none", 16)
    assert (first.optim.lr, first.loss, first.train.precision) == (0.01, {"bce": 1}, "auto")
    assert (second.data.size, second.loss, second.train.batch_size) == ((512, 768), {"soft_dice": 1}, 4)
    assert last is config
    assert config.epochs == 6
    places = [config.stage_of(epoch) for epoch in range(7)]
    assert [stage.data.size[0] for stage, _ in places] == [256, 256, 256, 512, 512, 512, 512]
    assert [done for _, done in places] == [0, 1, 2, 0, 0, 1, 2]
    assert parse_config(config.model_dump(mode="json"), "test") == config


def test_differences_name_the_settings():
    one, other = Config(name="x").model_dump(), Config(name="x", optim={"lr": 0.5}, loss={"bce": 1}).model_dump()
    assert differences(one, one) == []
    assert differences(one, other) == ["loss.soft_dice: 1.0 -> None", "optim.lr: 0.001 -> 0.5"]
