"""Each photo is scored by the fold that did not see its car; what is written is read back, joined and chosen from."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import full_disk, run_script
from varied_runs import CPU, write_unseen

from carvana.config import DataConfig
from carvana.data.loader import Loading
from carvana.data.rle import rle_decode
from carvana.data.soft import decode_soft, encode_soft, open_soft
from carvana.errors import InputError
from carvana.evaluation.metrics import BEYOND, THRESHOLDS, dice
from carvana.evaluation.oof import predict_oof
from carvana.evaluation.pixels import Search
from carvana.evaluation.selection import predict_choices, sample_pixels
from carvana.evaluation.summary import (
    SOFT_MASKS,
    best_threshold,
    choose_threshold,
    merge_oof,
    read_oof,
    summary_lines,
    write_oof,
)
from carvana.evaluation.trained import common_checkpoints, find_checkpoints, unchanged, unscored_line
from carvana.log import write_json
from carvana.models.checkpoint import load_checkpoint
from carvana.prediction.ensemble import Choice, read_ensemble
from carvana.prediction.postprocess import AS_IT_IS, PostProcess
from carvana.prediction.predictor import Predictor, fold_members

VIEWS, FILES = ["identity", "hflip"], ["oof.csv", "oof.json", "oof_curves.npy", "oof_masks.csv.gz"]


@pytest.fixture(scope="module")
def both(demo, tmp_path_factory):
    return write_unseen(tmp_path_factory.mktemp("runs"), demo, small=[32, 48], large=[48, 72])


@pytest.fixture(scope="module")
def unseen(both):
    return replace(both, checkpoints={fold: {"small": paths["small"]} for fold, paths in both.checkpoints.items()})


@pytest.fixture(scope="module")
def oof(unseen):
    return predict_oof(unseen, VIEWS)


def test_probabilities_that_are_kept_are_those_of_networks_that_never_saw_the_car(unseen, oof, tmp_path):
    assert not oof.soft
    write_oof(tmp_path / "small", predict_oof(unseen, VIEWS, soft=True), unseen, VIEWS)
    (masks,) = open_soft(DataConfig(soft=[str(tmp_path / "small" / SOFT_MASKS)]))
    assert sorted(masks.image_ids) == sorted(unseen.photos.image_ids)
    for fold, image_ids in unseen.by_fold.items():
        networks = [load_checkpoint(unseen.checkpoints[fold]["small"])]
        predictor = Predictor([fold_members(networks, VIEWS, CPU)], CPU, unseen.loading)
        for prediction in predictor.predict(unseen.photos, image_ids):
            expected = decode_soft(encode_soft(prediction.probs), prediction.probs.shape)
            assert np.abs(masks.mask(prediction.image_id).astype(int) - expected).max() <= 1


def test_devices_share_the_photos_of_each_fold(unseen, oof):
    shared = predict_oof(replace(unseen, loading=Loading(2, 0)), VIEWS, devices=[CPU, CPU], soft=True)
    assert shared.table.drop(columns=BEYOND).equals(oof.table.drop(columns=BEYOND))
    large = replace(unseen, loading=Loading(16, 0))  # a batch a fold: only one device has work
    assert predict_oof(large, VIEWS, devices=[CPU, CPU]).table["image_id"].tolist() == oof.table["image_id"].tolist()
    assert np.abs(shared.curves - oof.curves).max() < 1e-3
    assert [len(mask) > 0 for mask in shared.masks] == [len(mask) > 0 for mask in oof.masks]
    for png, rle in zip(shared.soft, oof.masks, strict=True):
        assert ((decode_soft(png, (96, 144)) >= 128) == rle_decode(rle, (96, 144))).mean() > 0.9


@pytest.fixture
def written(unseen, oof, tmp_path):
    """The folder of the evaluated experiment, and its oof.json."""
    return tmp_path / "small", write_oof(tmp_path / "small", oof, unseen, VIEWS)


def test_each_photo_is_scored_by_the_fold_that_did_not_see_its_car(unseen, oof):
    assert sorted(oof.table["image_id"]) == unseen.photos.image_ids
    assert oof.table["car"].tolist() == unseen.cars
    assert (oof.table["fold"] == oof.table["car"].map(unseen.folds.set_index("car")["fold"])).all()
    for place in (0, -1):
        row = oof.table.iloc[place]
        members = fold_members([load_checkpoint(unseen.checkpoints[row.fold]["small"])], VIEWS, CPU)
        predictions = Predictor([members], CPU, Loading(1, 0)).predict(unseen.photos, [row.image_id], masks=True)
        _, ((probs,),), mask = next(predictions)
        assert oof.curves[place, THRESHOLDS.index(0.37)] == pytest.approx(dice(probs >= 0.37, mask), abs=1e-3)
        assert dice(torch.from_numpy(rle_decode(oof.masks[place], mask.shape)), probs >= 0.5) > 0.999


def test_what_an_earlier_version_evaluated_is_refused(written):
    folder, summary = written
    write_json(folder / "oof.json", {key: value for key, value in summary.items() if key != "errors"})
    with pytest.raises(InputError, match=r"small: evaluated by an earlier version; run src/evaluate\.py small again"):
        read_oof(folder)


def test_summary_table_and_curve_agree(written, oof):
    folder, summary = written
    content, copy = read_oof(folder)
    assert (content, copy.masks, copy.curves.tolist()) == (summary, oof.masks, oof.curves.tolist())
    assert copy.table.columns.tolist() == ["image_id", "car", "angle", "fold", *BEYOND, "dice"]
    assert copy.table["dice"].mean() == pytest.approx(summary["dice"], abs=1e-6)
    assert summary["curve"][f"{summary['threshold']:.2f}"] == pytest.approx(summary["dice"])
    assert summary["interval"][0] <= summary["dice"] <= summary["interval"][1]
    assert (summary["photos"], summary["cars"], summary["tta"], summary["folds_missing"]) == (32, 2, VIEWS, [])


def test_the_threshold_is_the_best_and_nearest_to_one_half_of_the_same_checkpoints(unseen, written, capsys):
    curves = [np.where(np.arange(99) == 69, peak, 0.9) for peak in (0.9, 0.95)]
    assert list(map(best_threshold, curves)) == [0.5, 0.7]
    folder, summary = written
    choose = lambda name="small", views=VIEWS: choose_threshold(folder.parent, [name], views)
    assert choose() == summary["threshold"]  # only a network of all cars may lie there
    for fold, paths in unseen.checkpoints.items():
        shutil.copytree(paths["small"].parent, folder / f"fold{fold}")
    assert (choose(), capsys.readouterr().err) == (summary["threshold"], "")
    assert choose(views=["identity"]) == summary["threshold"]
    assert "note: small was evaluated with views ['identity', 'hflip']" in capsys.readouterr().err
    shutil.rmtree(folder / "fold1")
    for name, words in (
        ("small", r"of other checkpoints.*: run src/evaluate\.py small, or give --threshold"),
        ("other", r"oof\.json: missing, so there is no threshold yet: give --threshold"),  # it has no trained fold
    ):
        with pytest.raises(InputError, match=words):
            choose(name)
    (folder / "oof.json").write_text("<html>403</html>")
    with pytest.raises(
        InputError, match=r"oof\.json: not readable .*; run src/evaluate\.py small, or give --threshold"
    ):
        choose()


def test_no_evaluation_is_left_beside_another_ones_table(unseen, written, oof):
    folder, _ = written
    size = (folder / "oof.csv").stat().st_size
    with full_disk(size // 2), pytest.raises(OSError, match=r"requested and .* written"):
        write_oof(folder, oof, unseen, VIEWS)
    assert not (folder / "oof.json").exists()


def test_cars_whose_names_are_numbers_keep_them(written):
    folder, _ = written
    for path in (folder / "oof.csv", folder / "oof_masks.csv.gz"):
        table = pd.read_csv(path, dtype=str).rename(columns={"img": "image_id"})
        table["image_id"] = [f"{place:04}" for place in range(len(table))]
        table = table.assign(car="0001") if "car" in table else table.rename(columns={"image_id": "img"})
        table.to_csv(path, index=False)
    table = read_oof(folder)[1].table
    assert (table["image_id"][1], set(table["car"])) == ("0001", {"0001"})


def test_networks_are_named_by_folds_all_and_none(unseen, tmp_path, capsys):
    for name in ("fold0", "fold10", "fold2", "fold2 copy"):
        shutil.copytree(unseen.checkpoints[0]["small"].parent, tmp_path / "x" / name)
    folders = lambda *options: [path.parent.name for path in find_checkpoints(tmp_path, "x", *options)]
    assert (folders(), folders("0,2")) == (["fold0", "fold2", "fold10"], ["fold0", "fold2"])
    assert unscored_line(tmp_path / "x") is None
    for number, name in (("none", "none"), ("all,none", "none"), ("7", "fold7")):
        remedy = rf"src/train\.py x --fold {number.removeprefix('all,')} --resume"
        with pytest.raises(InputError, match=rf"{name}/best\.safetensors: missing, .*; run {remedy}"):
            folders(number)
    (tmp_path / "x" / "fold2" / "state").mkdir()
    folders("0,2")
    note = "fold2/best.safetensors is of a training that has not ended; run src/train.py x --fold 2 --resume\n"
    assert capsys.readouterr().err.endswith(note)
    write_json(tmp_path / "x" / "fold2" / "end.json", {"finished": True})
    assert (folders("0,2"), capsys.readouterr().err) == (["fold0", "fold2"], "")
    shutil.copytree(tmp_path / "x" / "fold0", tmp_path / "x" / "none")
    assert (folders("none"), folders("all,none")[2:], len(folders())) == (["none"], ["fold10", "none"], 3)
    assert unscored_line(tmp_path / "x").endswith("none: trained on all cars, so it has no out-of-fold score")
    shutil.copytree(tmp_path / "x" / "none", tmp_path / "y" / "none")
    with pytest.raises(InputError, match="y: no trained fold there"):
        find_checkpoints(tmp_path, "y", "all,none")


def test_nothing_is_noted_of_weights_that_were_not_evaluated(unseen, tmp_path):
    checkpoint = shutil.copy(unseen.checkpoints[0]["small"], tmp_path / "best.safetensors")
    with unchanged({0: {"small": checkpoint}}):
        pass
    with (
        pytest.raises(InputError, match=r"best\.safetensors: its training went on meanwhile"),
        unchanged({0: {"small": checkpoint}}),
    ):
        checkpoint.write_bytes(b"better")


def test_what_is_compared_is_of_the_checkpoints_that_are_there(unseen, written, demo):
    folder, _ = written
    for fold, paths in unseen.checkpoints.items():
        shutil.copytree(paths["small"].parent, folder / f"fold{fold}")
        shutil.copytree(paths["small"].parent, folder.with_name("other") / f"fold{fold}")
    options = ["--runs", folder.parent, "--input", demo / "input", "--folds", demo / "folds.csv", "--num-workers", 0]
    (folder / "fold0" / "best.safetensors").write_bytes(b"trained anew")
    refused = run_script("evaluate.py", "other", "--compare", "small", *options, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")  # before anything is evaluated
    assert "small/oof.json: of other checkpoints than those in" in refused.stderr


def test_the_script_says_that_a_network_of_all_cars_has_no_score(unseen, demo, tmp_path):
    for name in ("fold0", "none"):
        shutil.copytree(unseen.checkpoints[0]["small"].parent, tmp_path / "small" / name)
    options = ["--input", demo / "input", "--runs", tmp_path, "--folds", demo / "folds.csv", "--num-workers", 0]
    lines = run_script("evaluate.py", "small", *options, "--tta", "none").stdout.splitlines()
    assert f"  {tmp_path}/small/none: trained on all cars, so it has no out-of-fold score" in lines
    assert list(json.loads((tmp_path / "small" / "oof.json").read_text())["checkpoints"]) == ["0"]


def test_only_folds_that_all_experiments_have(unseen, tmp_path):
    for name in ("a/fold0", "a/fold1", "b/fold1", "c/fold0"):
        shutil.copytree(unseen.checkpoints[int(name[-1])]["small"].parent, tmp_path / name)
    common = common_checkpoints(tmp_path, ["a", "b"], unseen.folds)
    assert common == {1: {name: tmp_path / name / "fold1" / "best.safetensors" for name in ("a", "b")}}
    for names, folds, words in [
        ("abc", unseen.folds, "no fold is trained in all of a, b, c; train one in all"),
        ("ab", unseen.folds.assign(fold=0), r"fold0/best\.safetensors: trained .* table of folds \(has learnt from"),
        ("d", unseen.folds, "d: no trained fold there"),
    ]:
        with pytest.raises(InputError, match=words):
            common_checkpoints(tmp_path, names, folds)
    shutil.copytree(tmp_path / "b" / "fold1", tmp_path / "b" / "fold3")
    with pytest.raises(InputError, match=r"fold3/best\.safetensors: of fold 1, as is .*fold1/best\.safetensors; leave"):
        common_checkpoints(tmp_path, ["b"], unseen.folds)


def test_cars_of_the_trained_folds_are_enough(unseen, oof):
    cars = oof.table.loc[oof.table["fold"] == 0, "car"].unique().tolist()
    part = replace(unseen, checkpoints={0: unseen.checkpoints[0]}, photos=unseen.photos.select(cars))
    assert part.cars == np.repeat(cars, 16).tolist()
    with pytest.raises(InputError, match="fold 1 is trained, but has none of the cars present"):
        predict_oof(replace(part, checkpoints=unseen.checkpoints), ["identity"])


def test_folds_evaluated_apart_are_joined_to_what_one_command_gives(unseen, written, tmp_path):
    folders, joined = [tmp_path / part / "small" for part in "ab"], tmp_path / "joined" / "small"
    parts = [replace(unseen, checkpoints={fold: paths}) for fold, paths in unseen.checkpoints.items()]
    first, second = [write_oof(folders[i], predict_oof(part, VIEWS), part, VIEWS) for i, part in enumerate(parts)]
    assert summary_lines(first)[1] == "  16 photos of 1 cars, views identity + hflip"
    assert summary_lines(first)[-2] == "  not trained yet, so not in the mean: fold 1"
    printed = run_script("submission.py", "merge-oof", *folders, "--output", joined).stdout
    assert printed.startswith(f"small: out-of-fold Dice {written[1]['dice']:.5f} per image at photo size\n  32 photos")
    assert all((joined / name).read_bytes() == (written[0] / name).read_bytes() for name in FILES)
    with pytest.raises(InputError, match="fold 0 is in another part too"):
        merge_oof([folders[0], folders[0]], joined)
    (folders[1] / "oof.json").write_text(json.dumps(second | {"tta": ["identity"]}))
    with pytest.raises(InputError, match="its tta is"):
        merge_oof(folders, joined)
    (folders[1] / "oof.json").write_text(json.dumps(second | {"experiment": "large"}))
    with pytest.raises(InputError, match=r"its experiment is large, that of .* is small"):
        merge_oof(folders, joined)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_named(written, name):
    path = written[0] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"small: .*run src/evaluate\.py small (first|again)"):
        read_oof(path.parent)
    path.unlink()
    with pytest.raises(InputError, match=rf"small: .*{name}.*run src/evaluate\.py small first"):
        read_oof(path.parent)


def test_choices_are_scored_on_whole_masks_and_nearly_so_on_the_sample(both, unseen, oof):
    repairs = [AS_IT_IS, PostProcess(parts=300)]
    ((as_it_is, mended),) = predict_choices(unseen, [Choice(experiments={"small": 1.0}, views=VIEWS)], repairs)
    for dices, repair in ((as_it_is, AS_IT_IS), (mended, repairs[1])):
        masks = [torch.from_numpy(repair(rle_decode(mask, (96, 144)))) for mask in oof.masks]
        truths = [torch.from_numpy(unseen.photos.mask(image_id)) for image_id in oof.table["image_id"]]
        assert dices == pytest.approx(list(map(dice, masks, truths)), abs=1e-3)
    assert (as_it_is != mended).any()
    mixed = Choice(experiments={"small": 0.3, "large": 0.7}, views=[*VIEWS, "scale0.75"], threshold=0.4)
    choices = [mixed, Choice(experiments={"large": 1.0}, views=["identity", "scale0.75"], threshold=0.6)]
    sample = sample_pixels(both, ["small", "large"], mixed.views, 32 * 11 * 96 * 144)
    search, whole = Search(sample, ["small", "large"], mixed.views), predict_choices(both, choices, [AS_IT_IS])
    errors = np.array([search.dices(choice) for choice in choices]) - whole[:, 0]
    assert abs(errors).max() < 0.02  # by rounding
    assert abs(errors.mean(1)).max() < 5e-3


def test_choose_ensemble_writes_what_a_submission_reads(both, demo):
    runs = both.checkpoints[0]["small"].parents[2]
    options = ["--input", demo / "input", "--runs", runs, "--folds", demo / "folds.csv", "--num-workers", 0]
    options += ["--tta", "hflip,scale0.75", "--holes", 50, "--parts", 50, "--batch-size", 16]
    printed = run_script("choose_ensemble.py", "small", "large", *options).stdout
    choice, _ = read_ensemble(runs / "ensemble.json", runs)
    content = json.loads((runs / "ensemble.json").read_text())
    heading = "  Dice     95 % interval     gain      95 % interval       choice\n"
    assert printed.startswith(f"64 photos of 4 cars, fold 0, 1\non a sample of pixels:\n{heading}  0.")
    assert printed.count("  small, identity, threshold 0.50\n") == 1 + (
        content["simplest"]["experiments"] == {"small": 1.0}
    )
    assert printed.endswith(f"ensemble.json: {choice}: out-of-fold Dice {content['dice']:.5f}\n")
    kept = all(content[key] == content["simplest"][key] for key in ("experiments", "views", "threshold"))
    assert kept == ("the simplest choice is kept" in printed)
    assert content["gain"] == pytest.approx(content["dice"] - content["simplest"]["dice"])
