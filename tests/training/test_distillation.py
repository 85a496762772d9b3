"""Distillation: targets that are part truth and part probabilities, and who may not learn from whom."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from carvana.config import Config, parse_config
from carvana.data.cache import PhotoCache
from carvana.data.dataset import TrainSet
from carvana.data.folds import read_folds
from carvana.data.geometry import Fit
from carvana.data.images import Photos, open_test, open_train
from carvana.data.pseudo import MixedPhotos, open_pseudo
from carvana.data.soft import SoftenedPhotos, encode_soft, open_soft, write_soft
from carvana.errors import InputError
from carvana.log import read_records, write_json
from carvana.models.checkpoint import load_checkpoint, read_facts
from carvana.provenance import file_digest
from carvana.training import fold as module
from carvana.training.fold import train_fold
from carvana.training.split import Fold, seen_cars, split_fold, with_labels

SIZE, OOF = (96, 144), {"out_of_fold": True}
FITS = [Fit((32, 48)), Fit((40, 50)), Fit((128, 160), "pad")]


def write_masks(path: Path, photos: Photos, probs: torch.Tensor | None = None, seen: list[str] = (), **facts) -> Path:
    """Soft masks of these photos, all alike; by default the true ones."""
    masks = ((i, torch.from_numpy(photos.mask(i)).float() if probs is None else probs) for i in photos.image_ids)
    write_soft(path, ((f"{image_id}.png", encode_soft(each)) for image_id, each in masks))
    facts = {"kind": "soft", "size": SIZE, "digest": file_digest(path), "seen_cars": list(seen)} | facts
    write_json(Path(f"{path}.json"), facts)
    return path


@pytest.fixture(scope="module")
def train(demo):
    return open_train(demo / "input")


def configured(*soft: Path, **data) -> Config:
    return parse_config(TINY | {"data": TINY["data"] | {"soft": list(map(str, soft))} | data}, "test")


def halves() -> torch.Tensor:
    """Left 0.2, right 0.8."""
    probs = torch.full(SIZE, 0.2)
    probs[:, 72:] = 0.8
    return probs


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("share", [0.25, 1])
def test_a_target_is_part_truth_and_part_probabilities_wherever_a_photo_goes(train, tmp_path, fit, share):
    """Shrunk, padded, cropped and augmented: where true masks go, soft ones go."""
    same, plain = write_masks(tmp_path / "same.zip", train, **OOF), PhotoCache(train, fit, 0)
    (masks,) = open_soft(configured(same).data)
    cache = PhotoCache(SoftenedPhotos(train, (masks,), share), fit, 0)
    for augmentation, crop in (("none", None), ("light", (30, 40)), ("medium", None), ("winner", (20, 20))):
        shown, expected = (TrainSet(source, augmentation, 0, 1, crop)[5] for source in (cache, plain))
        assert augmentation == "winner" or torch.equal(shown[0], expected[0])  # it may colour the car
        errors = (shown[1].int() - expected[1].int()).abs().float() / 255
        assert errors.mean() < 0.03 * share  # edges are two pixels wide after the way through half the size
        assert shown[1].shape == expected[1].shape

    soft = open_soft(configured(write_masks(tmp_path / "halves.zip", train, halves(), **OOF)).data)
    _, mask = PhotoCache(SoftenedPhotos(train, soft, share), fit, 0)[5]
    truth = plain[5][1] / 255
    columns = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    for side, prob in ((columns < mask.shape[1] // 2 - 2, 0.2), (columns > mask.shape[1] // 2 + 2, 0.8)):
        inner = side & np.isin(truth, (0, 1))
        assert np.abs(mask / 255 - ((1 - share) * truth + share * prob))[inner].max() < 0.01


def test_of_several_files_the_mean_is_taken_and_a_photo_in_none_keeps_its_mask(train, tmp_path):
    first, second = train.select(train.cars[:2]), train.select(train.cars[1:3])
    paths = [
        write_masks(tmp_path / f"{prob}.zip", photos, torch.full(SIZE, prob), **OOF)
        for prob, photos in ((0.2, first), (0.6, second))
    ]
    softened = SoftenedPhotos(train, open_soft(configured(*paths).data), 1)
    values = [np.unique(softened.mask(f"{car}_01")).tolist() for car in train.cars[:3]]
    assert values == [[51], [102], [153]]
    assert np.array_equal(softened.mask(f"{train.cars[3]}_01"), train.mask(f"{train.cars[3]}_01"))


def test_photos_without_masks_have_soft_ones_and_no_second_layer(demo, train, tmp_path):
    test = open_test(demo / "input")
    path = write_masks(tmp_path / "test.zip", test, halves(), ["far"])
    mixed = MixedPhotos(train, open_pseudo(configured(pseudo=str(path)).data, demo / "input"))
    assert mixed.image_ids == train.image_ids + test.image_ids
    cache = PhotoCache(mixed, FITS[0], 1)
    for _ in range(2):  # written, then read
        image, mask = cache[len(train.image_ids) + 3]
        assert np.array_equal(image, PhotoCache(test, FITS[0], 0).photos.fitted(test.image_ids[3], FITS[:1])[0][0])
        assert (mask.shape, *np.unique(mask[:, [0, -1]])) == ((32, 48), 51, 204)
        assert np.array_equal(cache[3][1], PhotoCache(train, FITS[0], 0)[3][1])


def test_only_what_is_out_of_fold_is_learnt_from_and_only_by_those_who_may(demo, train, tmp_path):
    folds = read_folds(demo / "folds.csv")

    def split(number: int | None) -> Fold:
        return split_fold(train, folds, number, tmp_path, "tiny")

    def refusal(path: Path, number: int | None = None, photos: Photos = train, **facts) -> str:
        config = configured(write_masks(path, photos, **facts))
        with pytest.raises(InputError) as error:
            with_labels(split(number), None, open_soft(config.data))
        assert "\n" not in str(error.value)
        return str(error.value)

    path, test = tmp_path / "x.zip", open_test(demo / "input")
    assert f"{path}: not of photos with masks; src/evaluate.py --soft" in refusal(path)
    assert "not of photos with masks" in refusal(path, kind="labels", **OOF)
    leak = refusal(path, 0, seen=train.cars, **OOF)
    assert "have learnt from cars of this fold's validation" in leak
    assert leak.endswith("they are for a network of all cars, --fold none")
    assert "of none of the photos that fold none trains on" in refusal(path, photos=test, probs=halves(), **OOF)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(InputError, match="missing, cut or not the file of its manifest"):
        open_soft(configured(path).data)
    config = configured(write_masks(path, train, seen=["far"], size=[96, 150], **OOF))
    fold = with_labels(split(None), None, open_soft(config.data))
    assert seen_cars(config, fold) == sorted([*train.cars, "far"])
    with pytest.raises(InputError, match=r"of \(96, 150\), but .*_01_mask\.gif is of \(96, 144\)"):
        PhotoCache(SoftenedPhotos(train, fold.soft, 0.5), FITS[0], 0)[0]
    with pytest.raises(ValueError, match="with_labels"):
        train_fold(config, split(None))


def test_a_student_resumes_to_the_same_weights_and_not_with_other_targets(demo, train, tmp_path, monkeypatch):
    oof = write_masks(tmp_path / "oof.zip", train, halves(), train.cars, **OOF)
    test = write_masks(tmp_path / "test.zip", open_test(demo / "input"), halves(), train.cars)
    config = configured(oof, pseudo=str(test), pseudo_share=0.5)
    few = train.select(read_folds(demo / "folds.csv").groupby("fold")["car"].first())

    def student(config: Config, runs: Path) -> Fold:
        labels = open_pseudo(config.data, demo / "input"), open_soft(config.data)
        return with_labels(split_fold(few, read_folds(demo / "folds.csv"), None, runs, "tiny"), *labels)

    whole, cut = student(config, tmp_path / "whole"), student(config, tmp_path / "cut")
    assert train_fold(config, whole)
    assert [record["train_photos"] for record in read_records(whole.folder / "log.jsonl")] == [48, 48]
    facts = read_facts(whole.folder / "best.safetensors")
    assert facts["seen_cars"] == sorted({*train.cars, *open_test(demo / "input").cars})
    save = module.save_state
    monkeypatch.setattr(module, "save_state", lambda *state: save(*state) or (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_fold(config, cut)
    monkeypatch.undo()
    moved = Path(shutil.copy(oof, tmp_path / "moved.zip"))
    shutil.copy(f"{oof}.json", f"{moved}.json")
    elsewhere = config.changed(data={"soft": [str(moved)]})
    other = config.changed(data={"soft_share": 0.25})
    with pytest.raises(InputError, match=r"cannot be resumed, it was another run: soft\.share: 0\.5 -> 0\.25"):
        train_fold(other, student(other, tmp_path / "cut"), resume=True)
    assert train_fold(elsewhere, student(elsewhere, tmp_path / "cut"), resume=True)
    weights, expected = (load_checkpoint(f.folder / "best.safetensors").model.state_dict() for f in (cut, whole))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
