"""A choice is written with the digests of its checkpoints, and read only with these."""

import json

import pytest

from carvana.errors import InputError
from carvana.prediction.ensemble import Choice, read_ensemble, write_ensemble
from carvana.prediction.postprocess import PostProcess

CHOICE = Choice(experiments={"a": 0.75, "b": 0.25}, views=["identity", "hflip"], postprocess=PostProcess(holes=5))


@pytest.fixture
def path(tmp_path):
    """ensemble.json beside three experiments, of which c was not chosen."""
    paths = {fold: {name: tmp_path / name / f"fold{fold}/best.safetensors" for name in "abc"} for fold in (10, 1)}
    for checkpoint in [*paths[10].values(), *paths[1].values()]:
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text(str(checkpoint))
    write_ensemble(tmp_path / "ensemble.json", CHOICE, paths, {"dice": 0.9})
    return tmp_path / "ensemble.json"


def test_a_choice_survives_its_file_with_its_checkpoints_only(path):
    choice, checkpoints = read_ensemble(path, path.parent)
    assert (choice, json.loads(path.read_text())["dice"]) == (CHOICE, 0.9)
    folds = ("fold1/best.safetensors", "fold10/best.safetensors")
    assert checkpoints == {name: [path.parent / name / fold for fold in folds] for name in "ab"}
    assert str(CHOICE) == "0.75 a + 0.25 b, identity hflip, threshold 0.50, holes < 5"
    assert str(Choice(experiments={"a": 1.0}, threshold=0.456)) == "a, identity, threshold 0.46"


@pytest.mark.parametrize(("name", "content", "words"), [
    ("ensemble.json", {"views": ["vflip"]}, "views: .*no view is named vflip.*again"),
    ("ensemble.json", {"experiments": {"a": -1}}, "experiments: .*weights must be above 0.*again"),
    ("ensemble.json", {"experiments": {"a": 1.0}}, "checkpoints: not of the experiments.*again"),
    ("ensemble.json", {"threshold": 3}, "threshold: .*again"), ("ensemble.json", "{", "JSON: .*again"),
    ("ensemble.json", {"checkpoints": None}, "checkpoints: .*again"), ("ensemble.json", None, "cannot be read .*first"),
    ("b/fold1/best.safetensors", "new", r"chosen with another .*b/fold1/best\.safetensors than is there now.*again"),
    ("b/fold1/best.safetensors", None, r"b/fold1/best\.safetensors is missing.*again"),
])  # fmt: skip
def test_a_spoilt_file_or_another_checkpoint_is_refused_in_one_line(path, name, content, words):
    file = path.parent / name
    text = json.dumps(json.loads(file.read_text()) | content) if isinstance(content, dict) else content
    file.write_text(text) if text else file.unlink()
    with pytest.raises(InputError, match=rf"^{path}: .*{words}$"):
        read_ensemble(path, path.parent)
