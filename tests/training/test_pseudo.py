"""Training on pseudo-labels: what is learnt from them, how they are mixed in, and who may not learn from whom."""

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, run_script
from varied_runs import one_car_fold

from carvana.config import Config, LossConfig, parse_config
from carvana.data.augmentations import AUGMENTATIONS
from carvana.data.cache import GIB, PhotoCache
from carvana.data.dataset import TrainSet
from carvana.data.folds import read_folds
from carvana.data.geometry import Fit
from carvana.data.images import open_test, open_train
from carvana.data.labels import Label, write_labels
from carvana.data.pseudo import MixedPhotos, PseudoPhotos, epoch_photos, kept_photos, open_pseudo
from carvana.data.rle import rle_encode
from carvana.errors import InputError
from carvana.log import read_records, write_json
from carvana.models.checkpoint import load_checkpoint, read_facts
from carvana.provenance import file_digest
from carvana.training import fold as module
from carvana.training.budget import plan_fold
from carvana.training.dry_run import forward_passes
from carvana.training.fold import train_fold
from carvana.training.losses import LOSSES, weighted_sum
from carvana.training.pace import Pace
from carvana.training.run import Budget
from carvana.training.split import seen_cars, with_labels

SIZE = (96, 144)
DISPUTED = np.zeros(SIZE, bool)
DISPUTED[30:66, 60:90] = True
SURE = 10  # of the 16 photos


def write_pseudo(path: Path, names: list[str], seen: Sequence[str] = (), shift: int = 0) -> Path:
    """Labels of these photos, the first ten sure enough; the car is a rectangle."""
    mask = np.zeros(SIZE, bool)
    mask[20:80, 30 + shift : 110] = True
    facts = [(0.99, 0.995)] * SURE + [(0.98, 1.0)] * 3 + [(1.0, 0.98)] * 100
    runs = rle_encode(mask), rle_encode(DISPUTED)
    write_labels(path, [Label(name, runs[0], *known, runs[1]) for name, known in zip(names, facts, strict=False)])
    source = {"kind": "labels", "size": SIZE, "digest": file_digest(path), "seen_cars": list(seen)}
    write_json(Path(f"{path}.json"), source)
    return path


@pytest.fixture(scope="module")
def names(demo):
    photos = open_test(demo / "input")
    return list(map(photos.name, photos.image_ids))


@pytest.fixture
def labels(names, tmp_path):
    return write_pseudo(tmp_path / "labels.csv.gz", names)


def configured(labels: Path, **data) -> Config:
    settings = {"pseudo": str(labels), "pseudo_share": 0.5} | data
    stage = {"data": {"size": [16, 32]}, "train": {"epochs": 1}}
    groups = {"data": TINY["data"] | settings, "earlier_stages": [stage]}
    return parse_config(TINY | groups, "test")


@pytest.mark.parametrize("name", LOSSES)
def test_disputed_pixels_have_no_gradient_and_count_as_right(name):
    loss = weighted_sum(LossConfig.model_validate({name: {}}))
    torch.manual_seed(0)
    coverage, disputed = torch.rand(2, 1, 32, 48), torch.zeros(2, 1, 32, 48)
    disputed[:, :, 8:20, 10:30] = 0.5
    disputed[:, :, 20:, :] = 0.49  # less than half of a pixel
    logits = torch.randn(2, 3, 32, 48, requires_grad=True)  # with deep supervision
    value = loss(logits, torch.cat([coverage, disputed], 1))
    value.sum().backward()
    ignored = (disputed >= 0.5).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).float().mean() > 0.5
    other = torch.where(ignored, 9 * torch.randn_like(logits), logits.detach())
    assert torch.equal(loss(other, torch.cat([coverage, disputed], 1)), value)
    whole = torch.where(ignored[:, :1], (coverage >= 0.5).float(), coverage)
    right = torch.where(ignored, 40 * whole - 20, logits.detach())
    assert torch.equal(loss(right, whole), value)
    everywhere = loss(logits, torch.cat([coverage, torch.ones_like(coverage)], 1))
    assert everywhere.tolist() == pytest.approx([0, 0], abs=1e-4)
    nowhere = loss(logits, torch.cat([coverage, torch.zeros_like(coverage)], 1))
    assert torch.equal(nowhere, loss(logits, coverage))


class Listed(list):
    """Stands for a cache of photos."""

    @property
    def photos(self) -> "Listed":
        return self

    image_ids = photos

    def only(self, image_ids) -> set:
        return {*image_ids}

    def of(self, photos: set) -> "Listed":
        return Listed(item if item in photos or item in "abcd" else None for item in self)


def test_an_epoch_draws_pseudo_photos_anew_by_seed_and_epoch_alone():
    source = Listed([*"abcd", *map(str, range(30))])  # four with true masks
    draw = lambda share, seed=0, epoch=0: list(map(epoch_photos(source, 4, share, seed, epoch).__getitem__, range(4)))
    assert draw(0) == [*"abcd"]
    for share, count in ((1, 4), (3, 12), (0.5, 2), (1000, 30)):
        photos = epoch_photos(source, 4, share, 1, 2)
        items = [photos[place] for place in range(len(photos))]
        assert items[:4] == [*"abcd"]
        assert len(items) == 4 + count == 4 + len(set(items[4:]))
        assert items == [photos.dataset[place] for place in epoch_photos(source, 4, share, 1, 2).indices]
        assert len(set(photos.dataset)) == 4 + count + (count < 30)  # what is not drawn is left out
    places = {tuple(epoch_photos(source, 4, 1, seed, epoch).indices) for seed in (0, 1) for epoch in (0, 1)}
    assert len(places) == 4


def test_processes_that_load_get_the_drawn_labels_alone(demo, labels):
    photos, config = open_train(demo / "input"), configured(labels)
    source = PhotoCache(MixedPhotos(photos, open_pseudo(config.data, demo / "input")), Fit((32, 48)), 1)
    epoch = epoch_photos(source, labelled := len(photos.image_ids), 2 / labelled, 0, 0)
    sent = pickle.loads(pickle.dumps(epoch))
    drawn = [source.image_ids[place] for place in epoch.indices[labelled:]]
    assert [*sent.dataset.photos.pseudo.masks.runs] == drawn
    for index in (3, labelled, labelled + 1):
        assert all(map(np.array_equal, sent[index], source[epoch.indices[index]]))


def test_masks_have_a_second_layer_and_the_first_is_as_ever_cached_or_not(demo, labels):
    photos, config = open_train(demo / "input"), configured(labels)
    mixed, fit = MixedPhotos(photos, open_pseudo(config.data, demo / "input")), Fit((32, 48))
    assert len(mixed.image_ids) == len(photos.image_ids) + SURE
    plain = PhotoCache(photos, fit, 0)
    kept, read = (PhotoCache(mixed, fit, gib) for gib in (1000 * 32 * 48 * 5 / GIB, 0))
    assert kept.path
    for index in (3, len(photos.image_ids) + 2):
        for _ in range(2):  # written, then read
            assert all(map(np.array_equal, kept[index], read[index]))
    assert np.array_equal(read[3][1][..., 0], plain[3][1])
    assert not read[3][1][..., 1].any()
    coverage, disputed = np.moveaxis(read[len(photos.image_ids)][1], 2, 0)
    assert (coverage[8:26, 12:36].min(), disputed[10:22, 20:30].min()) == (255, 255)
    assert coverage[:6].max() == disputed[:10].max() == 0
    for name in AUGMENTATIONS:  # also those that colour the car
        (image, mask), expected = (TrainSet(source, name, 0, 1, crop=(30, 45))[3] for source in (read, plain))
        assert mask.shape == (2, 30, 45)
        for pixels, other in ((image, expected[0]), (mask[:1], expected[1])):
            assert (pixels.int() - other.int()).abs().max() <= 8  # OpenCV moves two layers with other fractions


def test_unsure_photos_are_left_out_and_what_cannot_be_trained_on_is_refused(demo, names, labels, tmp_path, capsys):
    root = demo / "input"
    assert open_pseudo(configured(labels, pseudo=None).data, root) is None
    assert list(open_pseudo(configured(labels).data, root).masks.image_ids) == [name[:-4] for name in names[:SURE]]
    assert f"{labels}: 10 pseudo-labelled photos; 6 left out with expected Dice or agreement" in capsys.readouterr().err
    assert len(open_pseudo(configured(labels, pseudo_least=0.98).data, root).masks.image_ids) == 16

    def refusal(path: Path = labels, **data) -> str:
        with pytest.raises(InputError) as error:
            open_pseudo(configured(path, **data).data, root)
        assert "\n" not in str(error.value)
        return str(error.value)

    with pytest.raises(ValueError, match="cannot change pseudo: they are of the whole run"):
        configured(labels).changed(earlier_stages=[{"data": {"pseudo": "x"}, "train": {"epochs": 1}}])
    assert "all 16 photos have expected Dice or agreement below data.pseudo_least=1" in refusal(pseudo_least=1)
    assert "absent.csv.json: missing" in refusal(tmp_path / "absent.csv")
    facts = json.loads(Path(f"{write_pseudo(labels, names)}.json").read_text())
    for changed, fault in (
        ({"kind": "rows"}, "not beside labels (it is of rows)"),
        ({"seen_cars": None}, "not beside labels"),  # as an earlier version left them
        ({"out_of_fold": True}, "data.soft"),
    ):
        write_json(Path(f"{labels}.json"), facts | changed)
        assert fault in refusal()
    other = write_pseudo(tmp_path / "other.csv", ["other_01.jpg"])
    assert "lacks other_01 of" in refusal(other)
    other.write_text(other.read_text() + "\n")
    assert "other.csv: missing, cut or not the file of its manifest" in refusal(other)
    cropped = write_pseudo(tmp_path / "cropped.csv", names)
    facts = json.loads(Path(f"{cropped}.json").read_text())
    write_json(Path(f"{cropped}.json"), facts | {"size": [96, 150]})
    mixed = MixedPhotos(open_train(root), open_pseudo(configured(cropped).data, root))
    with pytest.raises(InputError, match=rf"labels of \(96, 150\), but {names[0]} is of \(96, 144\)"):
        PhotoCache(mixed, Fit((32, 48)), 0)[len(mixed.photos.image_ids)]


def test_a_fold_learns_from_no_network_that_knows_its_validation(demo, names, tmp_path):
    fold, root = one_car_fold(demo, tmp_path), demo / "input"

    def label(labelled: list[str], seen: list[str], root: Path = root) -> PseudoPhotos:
        return open_pseudo(configured(write_pseudo(tmp_path / "x.csv", labelled, seen)).data, root)

    pseudo = label(names, [*fold.train.cars, "far"])
    learning = with_labels(fold, pseudo)
    assert seen_cars(configured(tmp_path / "x.csv"), learning) == sorted([*fold.train.cars, "far", *pseudo.cars])
    assert seen_cars(configured(tmp_path / "x.csv", pseudo=None), with_labels(fold, None)) == fold.train.cars
    with pytest.raises(InputError, match=rf"learnt from cars of this fold's validation: {fold.val.cars[0]}; label"):
        with_labels(fold, label(names, ["far", *fold.val.cars]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test").symlink_to(root / "train")
    for photos in (fold.val, fold.train):
        same = list(map(photos.name, photos.image_ids))
        with pytest.raises(InputError, match=rf"labels of cars with true masks: {photos.cars[0]}; label other"):
            with_labels(fold, label(same, ["far"], tmp_path / "other"))


def test_a_run_mixes_them_in_but_never_validates_on_them_and_resumes_to_the_same_weights(
    demo, labels, names, tmp_path, monkeypatch
):
    config = configured(labels, pseudo_share=0.5)
    config = config.changed(
        data={"pseudo_share": 0}, train={"epochs": 1}, earlier_stages=[
            {"data": {"pseudo_share": share}, "train": {"epochs": epochs}} for share, epochs in ((0.5, 2), (3, 1))
        ],
    )  # fmt: skip
    pseudo = open_pseudo(config.data, demo / "input")
    whole = with_labels(one_car_fold(demo, tmp_path / "whole"), pseudo)
    assert train_fold(config, whole)
    records = read_records(whole.folder / "log.jsonl")
    assert [record["train_photos"] for record in records] == [24, 24, 16 + SURE, 16]
    assert [record["photos"] for record in records] == [16] * 4
    facts = read_facts(whole.folder / "best.safetensors")
    assert facts["seen_cars"] == sorted([*whole.train.cars, *pseudo.cars])

    cut = with_labels(one_car_fold(demo, tmp_path / "cut"), pseudo)
    save = module.save_state
    monkeypatch.setattr(module, "save_state", lambda *state: save(*state) or (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_fold(config, cut)
    monkeypatch.undo()
    moved = Path(shutil.copy(labels, tmp_path / "moved.csv.gz"))
    shutil.copy(f"{labels}.json", f"{moved}.json")
    elsewhere = config.changed(data={"pseudo": str(moved), "pseudo_input": str(demo / "input")})
    cut = with_labels(one_car_fold(demo, tmp_path / "cut"), open_pseudo(elsewhere.data, tmp_path))
    assert train_fold(elsewhere, cut, resume=True)
    weights, expected = (load_checkpoint(f.folder / "best.safetensors").model.state_dict() for f in (cut, whole))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    other = with_labels(whole, open_pseudo(configured(write_pseudo(moved, names, shift=1)).data, demo / "input"))
    with pytest.raises(InputError, match=r"cannot be resumed, it was another run: pseudo\.digest: "):
        train_fold(elsewhere, other, resume=True)
    with pytest.raises(ValueError, match="with_labels"):
        train_fold(config, replace(whole, pseudo=None), overwrite=True)


def test_time_and_cost_count_them(demo, labels, tmp_path, monkeypatch):
    config = configured(labels, pseudo_share=1).changed(train={"epochs": 3})
    assert forward_passes(config, 16, 0) == 2 * forward_passes(config.changed(data={"pseudo": None}), 16, 0)
    fold = with_labels(one_car_fold(demo, tmp_path), open_pseudo(config.data, demo / "input"))
    measured = []
    pace = lambda learner, photos, count, kept: measured.append((count, kept)) or Pace(1.0, 1.0)
    monkeypatch.setattr("carvana.training.pace.measure_training", pace)
    plan_fold(config, fold, Budget(60.0))
    assert measured == [(16 + SURE, 1)] * 2
    room = 16 * 32 * 5 * 18 / GIB  # of the first stage: two layers of a mask, 18 of 26 photos
    plan_fold(config.changed(data={"cache_gib": room}), replace(fold, folder=tmp_path / "other"), Budget(60.0))
    assert measured[2] == (16 + SURE, 18 / 26)
    assert kept_photos(labelled=100, pseudo=1000, drawn=200, room=600) == 100 + 200 * 500 / 1000
    assert kept_photos(labelled=100, pseudo=0, drawn=0, room=60) == 60


def test_the_script_trains_on_labels_and_refuses_those_of_other_folds_in_one_line(demo, names, tmp_path):
    (tmp_path / "tiny.yaml").write_text(json.dumps({key: TINY[key] for key in TINY if key != "name"}))
    options = ["--input", demo / "input", "--folds", demo / "folds.csv", "--runs", tmp_path, "--fold", 0]
    command = ["train.py", tmp_path / "tiny.yaml", *options, "--set", "train.epochs=1"]
    folds = read_folds(demo / "folds.csv")
    labels = write_pseudo(tmp_path / "labels.csv", names, seen=folds["car"][folds["fold"] == 1])
    done = run_script(*command, "--set", f"data.pseudo={labels}")
    assert f"{labels}: 10 pseudo-labelled photos; 6 left out" in done.stderr
    assert read_records(tmp_path / "tiny/fold0/log.jsonl")[0]["train_photos"] == 32 + SURE
    write_pseudo(labels, names, seen=folds["car"])
    refused = run_script(*command, "--overwrite", "--set", f"data.pseudo={labels}", check=False)
    assert refused.returncode == 2
    assert "have learnt from cars of this fold's validation" in refused.stderr.splitlines()[-1]
