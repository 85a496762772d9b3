import dataclasses
import json

import numpy as np
import pytest
import torch

from carvana.checkpoint import load_checkpoint, save_checkpoint
from carvana.device import Device
from carvana.errors import InputError
from carvana.folds import folds_digest, read_folds
from carvana.images import open_train
from carvana.inference import Member, fold_model, predict_photos
from carvana.metrics import THRESHOLDS, dice
from carvana.models import build_model
from carvana.oof import (
    HALF,
    best_threshold,
    choose_threshold,
    find_checkpoints,
    load_folds,
    merge_oof,
    predict_oof,
    read_oof,
    write_oof,
)
from carvana.rle import rle_decode

CPU = Device(torch.device("cpu"))
VIEWS = ["identity", "hflip"]


@pytest.fixture
def run(demo, tiny, tmp_path):
    """The runs folder with two untrained folds, the photos and the table of folds."""
    folds = read_folds(demo / "folds.csv")
    for fold in (0, 1):
        torch.manual_seed(fold)
        path = tmp_path / "tiny" / f"fold{fold}" / "best.safetensors"
        save_checkpoint(path, build_model(tiny().model), tiny(), fold, 1, 0.5, folds_digest(folds))
    return tmp_path, open_train(demo / "input"), folds


def test_each_photo_is_scored_by_the_fold_that_did_not_see_its_car(run):
    runs, photos, folds = run
    checkpoints = load_folds(find_checkpoints(runs, "tiny"), folds_digest(folds))
    found = predict_oof(checkpoints, photos, folds, VIEWS, CPU, num_workers=0)
    table, curves = found.table, found.curves
    assert sorted(table["image_id"]) == photos.image_ids
    fold_of = dict(zip(folds["car"], folds["fold"], strict=True))
    assert all(fold_of[row.car] == row.fold for row in table.itertuples())

    row = table.iloc[-1]
    member = Member(checkpoints[row.fold].config.data.geometry, fold_model(checkpoints[row.fold], VIEWS, CPU))
    (prediction,) = predict_photos([member], photos, [row.image_id], CPU, masks=True, num_workers=0)
    assert prediction.probs.shape == photos.mask(row.image_id).shape
    expected = dice(prediction.probs >= 0.37, prediction.mask)
    assert curves[-1, THRESHOLDS.index(0.37)] == pytest.approx(expected, abs=1e-3)
    kept = rle_decode(found.masks[-1], prediction.mask.shape)
    assert dice(torch.from_numpy(kept), prediction.probs >= HALF) > 0.999


def test_summary_and_table_agree(run):
    runs, photos, folds = run
    checkpoints = load_folds(find_checkpoints(runs, "tiny")[:1], folds_digest(folds))
    found = predict_oof(checkpoints, photos, folds, VIEWS, CPU, num_workers=0)
    summary = write_oof(runs / "tiny", found, checkpoints, folds, VIEWS)
    assert summary == json.loads((runs / "tiny" / "oof.json").read_text())
    assert (summary["photos"], summary["cars"], summary["folds_missing"]) == (32, 2, [1])
    rows = [line.split(",") for line in (runs / "tiny" / "oof.csv").read_text().splitlines()]
    assert rows[0] == ["image_id", "car", "angle", "fold", "dice"]
    assert np.mean([float(row[4]) for row in rows[1:]]) == pytest.approx(summary["dice"], abs=1e-6)
    low, high = summary["interval"]
    assert low <= summary["dice"] <= high
    facts, read = read_oof(runs / "tiny")
    assert facts == summary
    assert read.masks == found.masks
    assert summary["curve"][f"{summary['threshold']:.2f}"] == pytest.approx(summary["dice"])


def test_a_checkpoint_of_another_table_is_refused(run):
    runs, _, folds = run
    dealt_anew = folds.assign(fold=1 - folds["fold"])
    with pytest.raises(InputError, match=r"fold0/best\.safetensors: trained with another table of folds"):
        load_folds(find_checkpoints(runs, "tiny"), folds_digest(dealt_anew))


def test_threshold_is_the_best_and_nearest_to_one_half():
    flat = np.full(99, 0.9)
    assert best_threshold(flat) == 0.5
    flat[69] = 0.95
    assert best_threshold(flat) == 0.7


def test_threshold_of_a_submission_comes_from_its_own_checkpoints(run):
    runs, photos, folds = run
    used = load_folds(find_checkpoints(runs, "tiny"), folds_digest(folds))
    with pytest.raises(InputError, match=r"oof\.json: missing.*src/evaluate\.py tiny, or give --threshold"):
        choose_threshold(runs, {"tiny": used}, VIEWS)
    found = predict_oof(used, photos, folds, VIEWS, CPU, num_workers=0)
    summary = write_oof(runs / "tiny", found, used, folds, VIEWS)
    assert choose_threshold(runs, {"tiny": used}, VIEWS) == summary["threshold"]
    with pytest.raises(InputError, match="of other checkpoints"):
        choose_threshold(runs, {"tiny": [dataclasses.replace(used[0], digest="other"), used[1]]}, VIEWS)


def test_experiments_without_folds_are_named(tmp_path):
    with pytest.raises(InputError, match="no trained fold there"):
        find_checkpoints(tmp_path, "tiny")


def test_members_of_different_sizes_mix_in_one_pass(run, tiny):
    """The mean of two networks that see photos at different sizes is the mean of their maps at photo size."""
    runs, photos, _ = run
    model = fold_model(load_checkpoint(find_checkpoints(runs, "tiny")[0]), ["identity"], CPU)
    fits = [tiny().data.geometry, tiny(data={"size": [96, 160], "fit": "pad"}).data.geometry]
    members = [Member(fits[0], model, 1.0), Member(fits[1], model, 3.0)]
    chosen = photos.image_ids[:3]
    maps = [
        [p.probs for p in predict_photos(some, photos, chosen, CPU, num_workers=0)]
        for some in (members, members[:1], members[1:])
    ]
    for mixed, first, second in zip(*maps, strict=True):
        assert torch.allclose(mixed, (first + 3 * second) / 4, atol=1e-6)


def test_folds_evaluated_apart_are_joined_to_what_one_command_gives(run, tmp_path):
    runs, photos, folds = run
    checkpoints = load_folds(find_checkpoints(runs, "tiny"), folds_digest(folds))
    found = [predict_oof([one], photos, folds, VIEWS, CPU, num_workers=0) for one in checkpoints]
    together = predict_oof(checkpoints, photos, folds, VIEWS, CPU, num_workers=0)
    whole = write_oof(tmp_path / "whole" / "tiny", together, checkpoints, folds, VIEWS)
    parts = [tmp_path / name / "tiny" for name in ("one", "two")]
    for part, checkpoint, some in zip(parts, checkpoints, found, strict=True):
        write_oof(part, some, [checkpoint], folds, VIEWS)
    assert merge_oof(parts, tmp_path / "joined" / "tiny") == whole
    for name in ("oof.csv", "oof.json", "oof_curves.npy", "oof_masks.csv.gz"):
        joined, expected = (tmp_path / folder / "tiny" / name for folder in ("joined", "whole"))
        assert joined.read_bytes() == expected.read_bytes()

    with pytest.raises(InputError, match="fold 0 is in another part too"):
        merge_oof([parts[0], parts[0]], tmp_path / "joined" / "tiny")
    write_oof(parts[1], found[1], [checkpoints[1]], folds, ["identity"])
    with pytest.raises(InputError, match="its tta is"):
        merge_oof(parts, tmp_path / "joined" / "tiny")
    (parts[1] / "oof_curves.npy").unlink()
    with pytest.raises(InputError, match=r"oof_curves\.npy.*run src/evaluate.py tiny first"):
        merge_oof(parts, tmp_path / "joined" / "tiny")
