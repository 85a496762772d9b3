import pytest
import torch
from safetensors.torch import save_file

from carvana.checkpoint import load_checkpoint, read_facts, save_checkpoint
from carvana.errors import InputError
from carvana.models import build_model

IMAGES = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)


@pytest.fixture
def saved(tiny, tmp_path):
    """A path and the model saved there."""
    path, model = tmp_path / "best.safetensors", build_model(tiny().model).eval()
    save_checkpoint(path, model, tiny(), fold=3, epoch=7, dice=0.5, folds_digest="abc")
    return path, model


def test_the_file_alone_rebuilds_the_model(saved, tiny):
    path, model = saved
    checkpoint = load_checkpoint(path)
    assert torch.equal(checkpoint.model(IMAGES), model(IMAGES))
    assert (checkpoint.fold, checkpoint.epoch, checkpoint.dice, checkpoint.folds_digest) == (3, 7, 0.5, "abc")
    assert checkpoint.config == tiny()
    assert not checkpoint.model.training


def test_the_file_says_where_it_came_from(saved):
    facts = read_facts(saved[0])
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["commit"]


def test_a_failing_save_leaves_the_old_file(saved, tiny, monkeypatch):
    path, model = saved
    before = path.read_bytes()
    monkeypatch.setattr("carvana.checkpoint.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, model, tiny(), 0, 0, 0.0, "")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_broken_and_foreign_files_end_in_one_line(saved, tmp_path):
    path = saved[0]
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:1000])
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, message in [
        ("cut", "cut.safetensors: not a readable checkpoint"),
        ("foreign", "foreign.safetensors: weights without this project's metadata"),
        ("absent", "absent.safetensors: not a readable checkpoint"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            load_checkpoint(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)
