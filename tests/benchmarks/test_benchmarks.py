"""Each benchmark end to end on drawn cars, with seconds of training."""

import json
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, run_script

from carvana.config import ModelConfig
from carvana.data.images import open_test, open_train
from carvana.errors import InputError
from carvana.experiment import load_experiment
from carvana.log import read_records
from carvana.models import build_model
from carvana.models.checkpoint import save_checkpoint
from carvana.models.encoder import create_encoder
from carvana.training.pace import Pace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    paces = lambda config, *_, **__: [Pace(0.3, 0.3)] * len(config.stages)  # measured ones depend on the load
    monkeypatch.setattr("carvana.training.budget.measure_paces", paces)


@pytest.fixture
def small(demo, tmp_path) -> dict:
    """Arguments of every benchmark: a tiny experiment in float32 on the drawn cars."""
    experiment, cars = tmp_path / "tiny.yaml", tmp_path / "cars.txt"
    experiment.write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "name"}))
    cars.write_text("\n".join(open_train(demo / "input").cars))
    return {"experiment": str(experiment), "input_root": demo / "input", "cars": cars}


def test_time_to_dice_trains_each_contestant_once(small, demo, tmp_path, capsys, monkeypatch):
    import contestants
    import time_to_dice

    monkeypatch.setattr(contestants, "ModelConfig", partial(ModelConfig, base_width=4))  # 64 takes its time
    names = ["ours", "smp", "pytorch_unet"]
    small |= {"folds_file": demo / "folds.csv", "contestants": "all", "output": tmp_path / "race"}
    small |= {"smp_size": "32x64", "tta": "hflip"}
    time_to_dice.main(**small, minutes="0.02")
    table = capsys.readouterr().out
    results = {name: json.loads((tmp_path / "race" / f"{name}-0.02m.json").read_text()) for name in names}
    for name, result in results.items():
        low, high = result["error"]["interval"]
        assert low <= result["error"]["mean"] <= high
        assert 0 <= result["beyond_5px"]["mean"] <= result["beyond_1px"]["mean"] <= result["error"]["mean"]
        assert 0 <= result["worst"] <= 1 - result["error"]["mean"] <= 1
        assert 0 <= result["dice_with_views"] <= 1
        assert result["minutes"] >= 0.02 or name == "ours"
        assert result["photos_per_second"] > 0
        assert not set(result["settings"]["train_cars"]) & set(result["settings"]["val_cars"])
        assert result["machine"]["versions"]["torch"] == version("torch")
        assert f"\n{name:14}" in table
    ours = results["ours"]
    assert ours["photos"] == 32 * sum(ours["notes"]["epochs"])
    share = ours["error"]["mean"] / results["pytorch_unet"]["error"]["mean"]
    assert f"ours, 0.02 minutes, beside pytorch_unet: 1 - Dice is {100 * share:.1f} %, " in table
    assert (tmp_path / "race" / "time_to_dice.png").exists()
    logged = read_records(tmp_path / "race" / "tiny" / "fold0" / "log.jsonl")[-1]["dice"]
    assert 1 - ours["error"]["mean"] == pytest.approx(logged, abs=1e-6)  # the weights that were validated last

    time_to_dice.main(**small, minutes="0.02")
    again = capsys.readouterr()
    assert again.err.count("reused; --overwrite begins again") == len(names)
    assert again.out == table
    small |= {"contestants": "pytorch_unet"}
    time_to_dice.main(**small, minutes="0.02,0.03")
    assert capsys.readouterr().out.count("\npytorch_unet  ") == 2  # and the others' results of 0.02 minutes
    small |= {"contestants": "ours", "overrides": ["optim.lr=1e-4"]}
    with pytest.raises(InputError, match=r"ours-0\.02m\.json: of other settings \(own\.optim\.lr: "):
        time_to_dice.main(**small, minutes="0.02")
    with pytest.raises(InputError, match=r"--minutes 30;60: give a number, or several as 15,30,60"):
        time_to_dice.parse_minutes("30;60")


def test_train_throughput_compares_the_loop_with_the_bare_step(small):
    options = ["--experiment", small["experiment"], "--input", small["input_root"], "--cars", small["cars"]]
    result = run_script("../benchmarks/train_throughput.py", *options, "--photos", 16, "--rounds", 2)
    assert "real loop over bare step, median of 2 rounds" in result.stdout
    assert "at least 0.9 wanted: " in result.stdout
    assert "float32 and channels_last over float32 and channels-first" in result.stdout


def test_smps_encoder_is_ours_to_the_last_bit():
    from contestants import smp_unet

    config = load_experiment("unet_lite0", ROOT / "src" / "experiments").model
    network, encoder = smp_unet(config).eval(), create_encoder(config.encoder, True, config.weights).eval()
    ours, theirs = encoder.state_dict(), network.encoder.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert all(map(torch.equal, encoder(images), network.encoder(images)[-5:]))
    assert network.mean == (0.5, 0.5, 0.5)


def test_contestants_are_chosen_by_name():
    from contestants import parse_contestants

    assert parse_contestants("pytorch_unet,ours") == ["pytorch_unet", "ours"]
    with pytest.raises(InputError, match="--contestants them: no them; choose from all, ours, smp, pytorch_unet"):
        parse_contestants("them")


@pytest.fixture
def trained(demo, tiny, tmp_path) -> dict:
    """Arguments of the benchmarks of prediction: two folds of an untrained network."""
    for fold in (0, 1):
        torch.manual_seed(fold)
        path = tmp_path / "runs" / "tiny" / f"fold{fold}" / "best.safetensors"
        save_checkpoint(path, build_model(tiny().model), tiny(), fold, 1, 0.5, "digest", seen_cars=["learnt"])
    return {"experiment": "tiny", "runs": tmp_path / "runs", "input_root": demo / "input", "cars": None}


def test_predict_pipeline_compares_the_whole_with_the_networks(trained, capsys):
    import predict_pipeline

    predict_pipeline.main(**trained, tta="hflip", rounds=1)
    printed = capsys.readouterr().out
    assert "2 folds x 2 views" in printed
    ratio = float(printed.partition("alone, median: ")[2].split()[0])
    assert ratio > 0  # below 1 on a machine that nothing else uses
    assert [line.split("  ")[1] for line in printed.splitlines()[-4:]] == [
        "read, decode, shrink", "networks", "photo size, threshold, runs", "CSV, compressed",
    ]  # fmt: skip


def test_the_common_way_gives_the_same_masks(trained, capsys):
    import common_way

    common_way.main(**trained, count=6)
    printed = capsys.readouterr().out
    theirs, ours = (float(word) for word in printed.partition("true masks ")[2].split(" (")[0].split(" and "))
    assert theirs == pytest.approx(ours, abs=0.02)  # nearly each pixel of an untrained network is in doubt
    assert float(printed.partition(" times as fast")[0].split()[-1]) > 0


def test_held_out_compares_networks_on_cars_that_none_has_seen(trained, tmp_path, capsys):
    import held_out

    cars, entries = open_train(trained["input_root"]).cars[:2], ["tiny:0", "tiny:all:hflip"]
    (tmp_path / "cars.txt").write_text("\n".join(cars))
    options = {key: trained[key] for key in ("runs", "input_root")} | {"output": tmp_path / "held_out"}
    held_out.main(entries, tmp_path / "cars.txt", **options)
    printed = capsys.readouterr().out
    paths = (tmp_path / "held_out" / f"{name}.json" for name in ("tiny-0", "tiny-all-hflip"))
    single, both = (json.loads(path.read_text()) for path in paths)
    assert (single["passes"], both["passes"]) == (1, 4)
    single, both = (torch.tensor(result["table"]["dice"]) for result in (single, both))
    assert len(single) == 32
    assert "32 photos of 2 cars" in printed
    assert "tiny:0: 1 passes, " in printed
    assert f"\n  Dice {single.mean():.5f}, worst {single.min():.4f}\n" in printed
    assert f"tiny:all:hflip less tiny:0: Dice {(both - single).mean():+.5f} (" in printed

    held_out.main(entries, tmp_path / "cars.txt", **options)
    assert capsys.readouterr().err.count("reused") == 2
    (tmp_path / "cars.txt").write_text(cars[0])
    with pytest.raises(InputError, match=r"tiny-0\.json: of other settings \(cars: "):
        held_out.main(entries, tmp_path / "cars.txt", **options)
    with pytest.raises(InputError, match="tiny: not NAME:FOLDS, as unet_lite0:all, or"):
        held_out.open_entry("tiny", trained["runs"])
    with pytest.raises(InputError, match=f"tiny:0: has learnt from {cars[0]}; give cars that it has not seen"):
        held_out.refuse_leak("tiny:0", [cars[0]], [cars[0], "learnt"])


def test_scale_measures_memory_and_rows(trained, capfd):
    import scale

    photos = open_test(trained["input_root"])
    peak = scale.predict(photos, 20, ["tiny", "--runs", trained["runs"], "--tta", "none", "--threshold", 0.5])
    scale.write_and_check(open_train(trained["input_root"]), 50)
    printed = capfd.readouterr().out
    assert re.match(
        r"   20 photos +(\d+) .*  submission\.csv\.gz \d+ kB, submission\.csv\.gz\.json \d+ kB$", printed, re.M
    )
    assert 50 < peak < 5000
    assert "50 rows of real masks" in printed
    assert printed.count("reached") == 2  # written and checked in time


def test_rle_times_the_encoders_on_the_same_masks(demo, capsys):
    import rle

    rle.main(input_root=demo / "input", cars=None, count=5)
    printed = capsys.readouterr().out
    assert "5 masks of 96x144" in printed
    assert "1.00 times ours" in printed


def test_cutouts_compares_rims_in_three_rooms(capsys):
    import cutouts

    cutouts.main(cars=1, size="96x144", network="64x96", off=0.5)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["studio", "studio", "dusk", "dusk", "leaves", "leaves"]
    assert all(0 < float(line.split("alpha ")[1].split()[0]) < 0.5 for line in lines)


def test_limits_state_each_part_of_the_work_as_a_share(small, capsys, monkeypatch):
    import limits

    monkeypatch.setattr(limits, "COPIED", 2**20)
    monkeypatch.setattr(limits, "CPU_SIDES", dict.fromkeys(limits.CPU_SIDES, 64))
    limits.main(small["experiment"], small["input_root"], small["cars"], seconds=0)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:matrix product, (?:bf16|fp16|fp32)|copy) +[\d.]+ [TG]", printed, re.M)) == 4
    lines = [line for line in printed.splitlines() if line.endswith("%")]
    (kinds,) = [line for line in lines if line.startswith("a training step")]
    shares = [float(line.split()[-2]) for line in lines if line != kinds]
    assert len(shares) == 4
    assert min(shares) >= 0
    kinds = [int(share) for share in re.findall(r"(\d+) %", kinds)]
    assert sum(kinds) == pytest.approx(100, abs=4)  # rounded
    assert min(kinds[:3]) > 0


def test_loader_compares_what_it_delivers_with_what_is_computed_of_a_t4(small, capsys, monkeypatch):
    import loader

    monkeypatch.setattr(loader, "SECONDS", 0)
    small["cars"].write_text(open_train(small["input_root"]).cars[0])
    loader.main(small["experiment"], small["input_root"], small["cars"], workers=8)  # for two batches
    printed = capsys.readouterr().out
    decoded, cached, kept, _, first, later, alone, both = printed.partition("32x48")[2].split()[:8]
    assert float(kept) == 100
    assert float(first) == pytest.approx(4 * float(decoded), abs=0.3)
    assert float(later) == pytest.approx(4 * float(cached), abs=0.3)
    assert float(both) == pytest.approx(2 * float(alone), abs=0.1)
    assert printed.count("at half size") == 4


def test_selftest_measures_each_experiment_and_goes_on_after_one_that_does_not_fit(demo, tmp_path, monkeypatch):
    import selftest

    def measure(config, *arguments):
        if config.name == "vanilla_unet":
            raise InputError("out of memory with a single photo")
        return measured(config, *arguments)

    measured, path = selftest.measure, tmp_path / "selftest.json"
    monkeypatch.setattr(selftest, "measure", measure)
    monkeypatch.setattr(selftest, "WORKERS", 1)
    selftest.main(0, path, demo / "input", "vanilla_unet,unet_lite0", scale=0.05)
    report = json.loads(path.read_text())
    assert report["torch"] == version("torch")
    assert report["experiments"]["vanilla_unet"] == {"error": "out of memory with a single photo"}
    result = report["experiments"]["unet_lite0"]
    assert set(result.pop("memory_gib").values()) == {None} or torch.cuda.is_available()
    assert result.pop("train_photos_per_second").keys() == {"channels_last", "contiguous"}
    assert result.keys() >= {"predict_photos_per_second", "share_of_peak", "computed_gib", "loader_photos_per_second"}
    assert all(value > 0 for value in result.values())
