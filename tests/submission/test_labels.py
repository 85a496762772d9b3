"""`make_submission.py --labels`: how sure each mask is, where networks disagree, and who has learnt from what."""

import json
import os

import pytest
import torch
from conftest import run_script
from varied_runs import CPU, write_run

from carvana.data.images import open_test
from carvana.data.labels import Label, read_labels, read_source, write_labels
from carvana.data.loader import Loading
from carvana.data.rle import rle_decode, rle_encode
from carvana.data.soft import SoftMasks, decode_soft, encode_soft
from carvana.errors import InputError
from carvana.evaluation.metrics import dice
from carvana.provenance import file_digest
from carvana.submission.choice import build_predictor, choose
from carvana.submission.csv import read_submission
from carvana.submission.labels import describe
from carvana.submission.manifest import manifest_path, read_manifest

SIZE = (96, 144)


@pytest.fixture(scope="module")
def where(demo, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    photos = open_test(demo / "input")
    write_run(runs, "two", [32, 48], 2, photos, seen_cars={0: ["b"], 1: ["a", "b"]})
    write_run(runs, "wide", [32, 64], 1, photos, seen_cars={0: ["c"]})
    return ["--input", demo / "input", "--runs", runs]


@pytest.fixture(scope="module")
def command(where):
    options = ["--threshold", 0.5, "--batch-size", 2, "--block-size", 4, "--num-workers", 0, "--precision", "fp32"]
    return ["make_submission.py", *where, *options]


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """By two experiments, three networks in all, without an interruption."""
    folder = tmp_path_factory.mktemp("made")
    run_script(*command, "two", "wide", "--output", folder / "x.csv", "--labels", folder / "labels.csv.gz")
    return folder


def test_a_mask_is_as_sure_as_its_probabilities_and_as_its_networks_agree():
    probs = torch.tensor([[0.9, 0.6, 0.2, 0.0]])
    masks = [probs >= 0.5, probs >= 0.7]
    assert describe(probs, probs >= 0.5, masks) == (pytest.approx(2 * 1.5 / (1.7 + 2)), (1 + 2 / 3) / 2, "2 1")
    assert describe(probs, probs >= 0.5, [])[1:] == (1.0, "")
    empty = torch.zeros(1, 4)
    assert describe(empty, empty > 0, [empty > 0, empty > 0]) == (1.0, 1.0, "")


def test_labels_are_those_of_the_probabilities_and_the_submission_is_the_same_without(made, command, where, tmp_path):
    run_script(*command, "two", "wide", "--output", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes() == (made / "x.csv").read_bytes()
    labels = list(read_labels(made / "labels.csv.gz"))
    assert [label[:2] for label in labels] == list(read_submission(made / "x.csv"))
    photos = open_test(where[1])
    choice, checkpoints = choose(["two", "wide"], None, where[3], "hflip", 0.5)
    predictor = build_predictor(choice, checkpoints, CPU, Loading(2, 0), "torch", each=True)
    for label, prediction in zip(labels, predictor.predict(photos, photos.image_ids), strict=True):
        probs, *masks = (maps[0] for maps in prediction.maps)
        mask, masks = torch.from_numpy(rle_decode(label.rle_mask, SIZE)), [each >= 0.5 for each in masks]
        assert torch.equal(mask, probs >= 0.5)
        assert len(masks) == 3
        expected = 2 * (probs * mask).sum() / (probs.sum() + mask.sum())
        assert label.expected_dice == pytest.approx(expected.item(), abs=1e-5)
        assert label.agreement == pytest.approx(sum(dice(each, mask) for each in masks) / 3, abs=1e-5)
        votes = sum(each.int() for each in masks)
        assert label.disputed == rle_encode(((votes > 0) & (votes < 3)).numpy()) != ""


def test_a_manifest_says_who_labelled_and_from_which_cars_they_have_learnt(made):
    labels = made / "labels.csv.gz"
    manifest, submission = (json.loads(manifest_path(path).read_text()) for path in (labels, made / "x.csv"))
    assert manifest == submission | {
        "kind": "labels", "seen_cars": ["a", "b", "c"], "digest": file_digest(labels),
    }  # fmt: skip
    assert manifest["checkpoints"]["two"].keys() == {"0", "1"}


@pytest.mark.parametrize("moment", [1, 2, 5, 6, 9, 10, 11, 12])
def test_labels_of_a_killed_command_are_whole_or_not_there_and_continue_to_the_same_bytes(
    made, command, tmp_path, moment, monkeypatch
):
    """Before the 1st to 4th block or its labels, the joined file, the labels, or the output appear."""
    rename, renamed = os.replace, []

    def replace(source, target):
        if len(renamed) == moment:
            raise BaseException("killed")  # what no `except` of the code catches
        rename(source, renamed.append(target) or target)

    command = [*command, "two", "wide", "--output", tmp_path / "x.csv", "--labels", tmp_path / "labels.csv.gz"]
    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(BaseException, match="killed"):
        run_script(*command)
    monkeypatch.undo()
    assert (tmp_path / "labels.csv.gz").exists() == (moment > 10)
    if moment == 9:  # all blocks are there
        (tmp_path / "x.csv.parts" / "block-00002.labels.csv").write_text(",".join(Label._fields) + "\n")
        assert "block-00002.labels.csv: damaged; remove it and give" in run_script(*command, check=False).stderr
        (tmp_path / "x.csv.parts" / "block-00002.labels.csv").unlink()
    if moment == 5:
        without = run_script(*command[:-2], check=False)
        assert "an unfinished prediction with labels True instead of False" in without.stderr
    run_script(*command)
    for name in ("x.csv", "x.csv.json", "labels.csv.gz", "labels.csv.gz.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    assert len(os.listdir(tmp_path)) == 4


def test_shards_hold_the_labels_of_their_photos(made, softly, command, tmp_path):
    parts = [tmp_path / f"{part}.csv" for part in (1, 2)]
    for number, part in enumerate(parts, 1):
        beside = ["--labels", part.with_name(f"labels-{part.name}"), "--soft", part.with_suffix(".zip")]
        run_script(*command, "two", "wide", "--shard", f"{number}/2", "--output", part, *beside)
    labels = [part.with_name(f"labels-{part.name}") for part in parts]
    run_script("submission.py", "merge", *labels[::-1], "--output", tmp_path / "labels.csv.gz")
    assert (tmp_path / "labels.csv.gz").read_bytes() == (made / "labels.csv.gz").read_bytes()
    whole, joined = (read_manifest(manifest_path(folder / "labels.csv.gz")) for folder in (made, tmp_path))
    assert joined == whole.model_copy(update={"soft": True})
    soft = [part.with_suffix(".zip") for part in parts]
    run_script("submission.py", "merge", *soft, "--output", tmp_path / "soft.zip")
    assert (tmp_path / "soft.zip").read_bytes() == (softly / "soft.zip").read_bytes()
    assert read_source(tmp_path / "soft.zip", "data.pseudo")[1:] == read_source(softly / "soft.zip", "data.pseudo")[1:]
    mixed = run_script("submission.py", "merge", labels[0], soft[1], "--output", tmp_path / "x.csv", check=False)
    assert "the second has kind soft instead of labels; predict all parts alike" in mixed.stderr
    refused = run_script("submission.py", "merge", *labels[:1], "--output", tmp_path / "x.csv", check=False)
    assert "are in no part; give the other parts too" in refused.stderr
    assert not (tmp_path / "x.csv").exists()
    run_script("submission.py", "merge", *parts, *command[1:3], "--output", tmp_path / "whole.csv")
    assert (tmp_path / "whole.csv").read_bytes() == (made / "x.csv").read_bytes()


@pytest.fixture(scope="module")
def softly(command, tmp_path_factory):
    """Soft masks beside a submission, and no labels."""
    folder = tmp_path_factory.mktemp("softly")
    run_script(*command, "two", "wide", "--output", folder / "x.csv", "--soft", folder / "soft.zip")
    return folder


def test_soft_masks_are_the_probabilities_of_all_networks_and_views(softly, made, command, where):
    assert (softly / "x.csv").read_bytes() == (made / "x.csv").read_bytes()
    source, photos = read_source(softly / "soft.zip", "data.pseudo"), open_test(where[1])
    assert source[1:] == ("soft", SIZE, file_digest(softly / "soft.zip"), ["a", "b", "c"], False)
    masks = SoftMasks(source)
    choice, checkpoints = choose(["two", "wide"], None, where[3], "hflip", 0.5)
    predictor = build_predictor(choice, checkpoints, CPU, Loading(2, 0), "torch")
    for prediction in predictor.predict(photos, photos.image_ids):
        expected = decode_soft(encode_soft(prediction.probs), SIZE)
        assert abs(masks.mask(prediction.image_id).astype(int) - expected).max() <= 1


def test_photos_without_a_sample_can_be_labelled_only(demo, command, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test").symlink_to(demo / "input" / "test")
    cars = tmp_path / "cars.txt"
    cars.write_text("\n".join(open_test(demo / "input").cars))
    (tmp_path / "log.jsonl").touch()
    options = ["two", "--input", tmp_path / "other", "--cars", cars, "--output", tmp_path / "x.csv"]
    assert "no sample_submission.csv" in run_script(*command, *options, check=False).stderr
    labelled = run_script(*command, *options, "--labels", tmp_path / "labels.csv")
    assert f"{tmp_path / 'other'}: no sample_submission.csv; all test photos are labelled" in labelled.stderr
    names = sorted(os.listdir(demo / "input" / "test"))
    assert [label.img for label in read_labels(tmp_path / "labels.csv")] == names
    assert (tmp_path / "log.jsonl").read_text() == ""  # it is no submission


def test_what_are_no_labels_is_named(tmp_path, command):
    label = Label("a_01.jpg", "1 2", 0.5, 1.0, "")
    write_labels(path := tmp_path / "x.csv", [label])
    assert list(read_labels(path)) == [label]
    for line, text in ((1, "img,rle_mask\n"), (2, path.read_text().replace("0.5", "x")), (3, path.read_text() + "a\n")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"x\.csv, line {line}: not img,rle_mask,expected_dice"):
            list(read_labels(path))
    same = run_script(*command, "two", "--output", path, "--labels", path, check=False)
    no_zip = run_script(*command, "two", "--output", path, "--soft", tmp_path / "x.tar", check=False)
    assert f"error: {tmp_path / 'x.tar'}: must end in .zip" in no_zip.stderr
    assert f"error: --labels {path}: the same file as another; give another name" in same.stderr
