import json
import pickle

import pytest
import torch
from conftest import full_disk
from safetensors.torch import load_file, save_file

from carvana.errors import InputError
from carvana.models import build_model
from carvana.models.checkpoint import load_checkpoint, photos_of, read_facts, save_checkpoint

EARLIER = {  # settings as earlier versions stored them
    "data": {"box_margin": 0.1}, "loss": {"bce_dice": 1.0},
    "optim": {"schedule": "run", "frozen_norm": True}, "train": {"replay": 0.2, "average": "none", "average_of": 3},
    "earlier_stages": [{"data": {"size": [16, 24]}, "train": {"epochs": 1, "average": "last"}}],
}  # fmt: skip


@pytest.fixture
def saved(tiny, tmp_path):
    """The path and the model of a checkpoint, and a function that stores it under another name with other settings."""
    path, model = tmp_path / "best.safetensors", build_model(tiny().model).eval()
    save_checkpoint(path, model, tiny(), fold=3, epoch=7, dice=0.5, folds_digest="abc", seen_cars=["x", "y"])

    def store(name: str, **changes: dict | list):
        facts, copy = read_facts(path), path.with_name(f"{name}.safetensors")
        for key, change in changes.items():
            facts["config"][key] = facts["config"][key] | change if isinstance(change, dict) else change
        save_file(load_file(path), copy, metadata={key: json.dumps(value) for key, value in facts.items()})
        return copy

    return path, model, store


def test_checkpoints_say_which_photos_they_want_and_want_the_same(saved):
    path, _, store = saved
    hq = store("hq", data={"photos": "hq"})
    assert (photos_of([hq, hq]), photos_of([path])) == ("hq", "normal")
    assert load_checkpoint(hq).config.data.photos == "hq"
    with pytest.raises(InputError, match=rf"different photos: {path} on normal, {hq} on hq; leave one out, or train"):
        photos_of([path, hq])


def test_who_does_not_say_which_cars_it_has_seen_is_refused(saved):
    path, *_ = saved
    facts = {key: json.dumps(value) for key, value in read_facts(path).items() if key != "seen_cars"}
    save_file(load_file(path), path, metadata=facts)
    for read in (load_checkpoint, read_facts):
        with pytest.raises(InputError, match=r"best\.safetensors: weights without this project's metadata; give"):
            read(path)


def test_the_file_alone_rebuilds_the_model_also_of_earlier_versions(saved, tiny):
    path, model, store = saved
    images = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    for file in (path, store("old", **EARLIER)):
        checkpoint = load_checkpoint(file)
        assert torch.equal(checkpoint.model(images), model(images))  # in evaluation mode
        facts = read_facts(file)
        assert (checkpoint.fold, facts["epoch"], facts["dice"], facts["folds_digest"]) == (3, 7, 0.5, "abc")
        assert (checkpoint.config.name, checkpoint.config.model) == ("tiny", tiny().model)
        assert (checkpoint.config.data.size, checkpoint.config.data.fit) == (tiny().data.size, "resize")
    assert {"commit", "versions"} < read_facts(path).keys()


def test_another_process_reads_the_same_weights_or_none(saved, tiny):
    path, model, _ = saved
    checkpoint = load_checkpoint(path)
    assert pickle.loads(pickle.dumps(checkpoint)).digest == checkpoint.digest
    save_checkpoint(path, model, tiny(), fold=3, epoch=8, dice=0.6, folds_digest="abc", seen_cars=["x", "y"])
    with pytest.raises(InputError, match=r"best\.safetensors: its training went on meanwhile; give the command again"):
        pickle.loads(pickle.dumps(checkpoint))


def test_a_full_disk_leaves_the_old_file(saved, tiny):
    path, model, _ = saved
    before = path.read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError, match=f"{path}: .*File too large"):
        save_checkpoint(path, model, tiny(), 0, 0, 0.0, "", [])
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == {path: before}


def test_weights_that_are_not_finite_are_refused(saved, tiny):
    path, model, _ = saved
    model.network.head.bias.data.fill_(float("nan"))
    save_checkpoint(path, model, tiny(), fold=3, epoch=7, dice=0.5, folds_digest="abc", seen_cars=["x", "y"])
    with pytest.raises(
        InputError, match=r"best\.safetensors: network\.head\.bias is not finite; train this fold again"
    ):
        load_checkpoint(path)


def test_broken_and_foreign_files_end_in_one_line(saved, tmp_path):
    path, _, store = saved
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:1000])
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    store("wider", model={"decoder_channels": [16] * 5})
    store("misspelt", model={"encodr": "resnet18"})
    for name, message in [
        ("cut", "not a readable checkpoint"),
        ("absent", "not a readable checkpoint"),
        ("foreign", "weights without this project's metadata"),
        ("wider", "its weights do not fit its own config"),
        ("misspelt", r"model\.encodr: no such setting; did you mean encoder\?"),
    ]:
        with pytest.raises(InputError, match=rf"{name}.safetensors: {message}[^\n]*\Z"):
            load_checkpoint(tmp_path / f"{name}.safetensors")
