import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

import choose_ensemble
from carvana.checkpoint import load_checkpoint, save_checkpoint
from carvana.choice import Choice, read_ensemble, write_ensemble
from carvana.config import parse_config
from carvana.device import Device
from carvana.errors import InputError
from carvana.folds import folds_digest, read_folds
from carvana.images import car_of, open_train
from carvana.inference import Member, fold_model, predict_photos
from carvana.metrics import dice
from carvana.models import build_model
from carvana.pixels import PixelSample, quantise
from carvana.postprocess import PostProcess
from carvana.selection import Search, decide, predict_choices, sample_pixels
from carvana.tta import parse_views
from carvana.unseen import Unseen, common_checkpoints

CPU = Device(torch.device("cpu"))
EXPERIMENTS, VIEWS = ["small", "large"], parse_views("hflip,scale0.75,shift16")
SIZES = {"small": [32, 48], "large": [48, 72]}


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """Runs of two experiments with different network sizes, barely trained; photos; folds."""
    runs, folds = tmp_path_factory.mktemp("runs"), read_folds(demo / "folds.csv")
    photos = open_train(demo / "input")
    for seed, (name, size) in enumerate(SIZES.items()):
        for fold in (0, 1):
            torch.manual_seed(10 * seed + fold)
            seen = photos.select(folds.loc[folds["fold"] != fold, "car"])
            save(runs, name, fold, size, folds_digest(folds), seen)
    return runs, photos, folds


def save(runs, name, fold, size, digest, seen=None, steps=12):
    """A checkpoint of a tiny model, taught the photos `seen` for a few steps."""
    config = parse_config(TINY | {"name": name, "data": TINY["data"] | {"size": size}}, "tiny")
    model = build_model(config.model)
    if seen is not None:
        fit = config.data.geometry
        images = torch.stack([torch.from_numpy(fit.image(seen.image(i))).permute(2, 0, 1) for i in seen.image_ids])
        masks = torch.stack([torch.from_numpy(fit.mask(seen.mask(i)))[None] / 255 for i in seen.image_ids])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            F.binary_cross_entropy_with_logits(model(images), masks).backward()
            optimizer.step()
            optimizer.zero_grad()
    save_checkpoint(runs / name / f"fold{fold}" / "best.safetensors", model.eval(), config, fold, 1, 0.5, digest)


@pytest.fixture
def unseen(trained):
    """One car of each fold."""
    runs, photos, folds = trained
    few = photos.select(folds.groupby("fold")["car"].first())
    return Unseen(common_checkpoints(runs, EXPERIMENTS, folds_digest(folds)), few, folds, CPU, num_workers=0)


def test_each_photo_is_predicted_by_the_fold_that_did_not_see_its_car(trained, unseen):
    runs, photos, folds = trained
    assert sorted(unseen.cars) == sorted(map(car_of, unseen.photos.image_ids))
    choice = Choice(experiments={"large": 1.0}, views=["identity", "hflip"], threshold=0.45)
    ((dices,),) = predict_choices(unseen, [choice], [PostProcess()])
    image_ids = [image_id for some in unseen.by_fold.values() for image_id in some]
    for position in (0, len(image_ids) - 1):
        image_id = image_ids[position]
        (fold,) = folds.loc[folds["car"] == car_of(image_id), "fold"]
        network = load_checkpoint(runs / "large" / f"fold{fold}" / "best.safetensors")
        member = Member(network.config.data.geometry, fold_model(network, ["identity", "hflip"], CPU))
        (prediction,) = predict_photos([member], photos, [image_id], CPU, masks=True, num_workers=0)
        assert dices[position] == pytest.approx(dice(prediction.probs >= 0.45, prediction.mask), abs=1e-3)


@pytest.mark.parametrize("mean", ["probs", "logits"])
def test_dice_on_the_sample_is_near_that_of_whole_masks(unseen, mean):
    """All undecided pixels differ from whole masks by their rounding, a third of them from all by the draw."""
    choices = [
        Choice(experiments={"small": 1.0}),
        Choice(experiments={"small": 0.3, "large": 0.7}, views=VIEWS, mean=mean, threshold=0.4),
        Choice(experiments={"large": 1.0}, views=["identity", "shift16"], mean=mean, threshold=0.6),
    ]
    whole = predict_choices(unseen, choices, [PostProcess()])[:, 0]
    kept = sample_pixels(unseen, EXPERIMENTS, VIEWS, 32 * 13 * 96 * 144)
    undecided = kept._ends[-1] / 32
    third = sample_pixels(unseen, EXPERIMENTS, VIEWS, int(32 * 13 * undecided / 3), together=True)
    assert kept.sampled == 0
    assert third.sampled > 16
    of_kept, of_third = (
        np.array([Search(sample, EXPERIMENTS, VIEWS, mean).dices(choice) for choice in choices])
        for sample in (kept, third)
    )
    for dices, expected, of_a_photo in ((of_kept, whole, 0.01), (of_third, of_kept, 0.06)):
        assert abs(dices - expected).max() < of_a_photo
        assert abs((dices - expected).mean(1)).max() < 5e-3


def test_only_folds_that_all_experiments_have(trained, tmp_path):
    _, _, folds = trained
    for name, fold in [("a", 0), ("a", 1), ("b", 1), ("c", 0)]:
        save(tmp_path, name, fold, [32, 48], folds_digest(folds))
    common = common_checkpoints(tmp_path, ["a", "b"], folds_digest(folds))
    assert common == {1: {name: tmp_path / name / "fold1" / "best.safetensors" for name in ("a", "b")}}
    with pytest.raises(InputError, match="no fold is trained in all of a, b, c; train one in all"):
        common_checkpoints(tmp_path, ["a", "b", "c"], folds_digest(folds))
    with pytest.raises(InputError, match=r"fold0/best\.safetensors: trained with another table of folds"):
        common_checkpoints(tmp_path, ["a", "b"], folds_digest(folds.assign(fold=1 - folds["fold"])))


def drawn_sample(noises: list[list[float]]) -> PixelSample:
    """A sample of 12 photos, with candidates whose logits have so much noise, by experiment and view."""
    generator = torch.Generator().manual_seed(0)
    sample = PixelSample(12, len(noises), len(noises[0]), 10**7)
    slope = torch.linspace(-6, 6, 80).expand(50, 80)
    for _ in range(12):
        maps = [(slope + noise * torch.randn(50, 80, generator=generator)).sigmoid() for row in noises for noise in row]
        sample.add(quantise(torch.stack(maps)), slope > 0)
    return sample


def test_search_finds_the_weights_that_noise_asks_for():
    search = Search(drawn_sample([[2.0], [2.0], [9.0]]), ["a", "b", "noise"], ["identity"])
    found = search.ladder()[-1]
    assert found.experiments["a"] == pytest.approx(found.experiments["b"], abs=0.2)
    assert found.experiments.get("noise", 0) < 0.2
    assert sum(found.experiments.values()) == pytest.approx(1, abs=1e-5)
    assert search.simplest().experiments.keys() <= {"a", "b"}
    assert search.dices(found).mean() > search.dices(search.simplest()).mean() + 0.005
    assert found == search.ladder()[-1]


def test_search_takes_views_that_help_and_no_others():
    found = Search(drawn_sample([[2.0, 2.0, 30.0]]), ["a"], ["identity", "hflip", "scale2"]).ladder()[-1]
    assert found.views == ("identity", "hflip")


CARS = [car for car in "abcdefgh" for _ in range(4)]
SIMPLE, FOUND = Choice(experiments={"a": 1.0}), Choice(experiments={"a": 0.5, "b": 0.5}, threshold=0.45)
REPAIRS = [PostProcess(), PostProcess(holes=9)]


@pytest.mark.parametrize(
    ("gain", "by_repair", "expected"),
    [
        ([0.01] * 8, 0.0, FOUND),
        ([0.01] * 8, 0.002, FOUND.model_copy(update={"postprocess": REPAIRS[1]})),
        ([0.01] * 8, -0.002, FOUND),
        ([0.03, -0.02, 0.03, -0.02, 0.03, -0.02, -0.02, 0.0], 0.0, SIMPLE),
        ([-0.01] * 8, 0.001, SIMPLE),
    ],
)
def test_a_gain_inside_the_noise_is_refused(gain, by_repair, expected):
    simple = np.random.default_rng(0).normal(0.95, 0.01, 32)
    found = simple + np.repeat(gain, 4)
    dices = np.array([[simple, simple], [found, found + by_repair]])
    chosen, rows = decide([SIMPLE, FOUND], REPAIRS, dices, CARS)
    assert chosen.choice == expected
    assert rows[0].gain == 0
    assert rows[1].gain == pytest.approx(np.mean(gain))
    assert rows[1].gain_interval[0] <= rows[1].gain <= rows[1].gain_interval[1]


def test_choose_ensemble_writes_what_a_submission_reads(trained, demo, capsys):
    runs, _, _ = trained
    where = {"input_root": demo / "input", "runs": runs, "folds_file": demo / "folds.csv", "num_workers": 0}
    choose_ensemble.main(
        EXPERIMENTS, tta="hflip,scale0.75", mean="probs", holes=50, parts=50, memory=64, together=False,
        output=None, cars=None, batch_size=16, **where,
    )  # fmt: skip
    printed, content = capsys.readouterr().out, json.loads((runs / "ensemble.json").read_text())
    assert "64 photos of 4 cars, fold 0, 1" in printed
    assert content["interval"][0] <= content["dice"] <= content["interval"][1]
    assert content["gain"] == pytest.approx(content["dice"] - content["simplest"]["dice"])
    assert (content["gain"] == 0) == ("the simplest choice is kept" in printed)
    assert sum(content["experiments"].values()) == pytest.approx(1, abs=1e-5)

    choice, checkpoints = read_ensemble(runs / "ensemble.json", runs)
    assert f"{choice}: out-of-fold Dice {content['dice']:.5f}" in printed
    assert choice.threshold == content["threshold"]
    assert checkpoints == {
        name: [runs / name / f"fold{fold}" / "best.safetensors" for fold in (0, 1)] for name in choice.experiments
    }


@pytest.fixture
def written(trained, tmp_path):
    """ensemble.json beside one experiment with fold 1."""
    _, _, folds = trained
    save(tmp_path, "a", 1, [32, 48], folds_digest(folds))
    path = tmp_path / "ensemble.json"
    common = common_checkpoints(tmp_path, ["a"], folds_digest(folds))
    write_ensemble(path, Choice(experiments={"a": 1.0}, postprocess=PostProcess(holes=5)), common, {"dice": 0.9})
    return path, common[1]["a"], folds_digest(folds)


def test_a_choice_survives_its_file(written):
    path, checkpoint, _ = written
    choice, checkpoints = read_ensemble(path, path.parent)
    assert choice == Choice(experiments={"a": 1.0}, postprocess=PostProcess(holes=5))
    assert checkpoints == {"a": [checkpoint]}
    assert str(choice) == "a, identity, threshold 0.50, holes < 5"


def test_other_checkpoints_are_refused(written):
    path, checkpoint, digest = written
    save(path.parent, "a", 1, [32, 48], digest)
    with pytest.raises(InputError, match=r"chosen with another .*fold1/best\.safetensors than is there now; run"):
        read_ensemble(path, path.parent)
    checkpoint.unlink()
    with pytest.raises(InputError, match=r"fold1/best\.safetensors is missing"):
        read_ensemble(path, path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": ["vflip"]}, "views: .*no view is named vflip"),
        ({"experiments": {"a": -1}}, "experiments: .*weights must be above 0"),
        ({"experiments": {"a": 0.5, "b": 0.5}}, "checkpoints: not of the experiments"),
        ({"threshold": 3}, "threshold: "),
        ({"checkpoints": None}, "checkpoints: "),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(written, change, message):
    path, _, _ = written
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        read_ensemble(path, path.parent)
    assert "\n" not in str(error.value)


def test_no_file_and_no_json_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"run src/choose_ensemble\.py first"):
        read_ensemble(tmp_path / "ensemble.json", tmp_path)
    (tmp_path / "ensemble.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_ensemble(tmp_path / "ensemble.json", tmp_path)
