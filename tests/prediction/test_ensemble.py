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
    checkpoint = checkpoints["b"][0]
    for spoil, words in (
        (lambda: checkpoint.write_text("new"), "than is there now"),
        (checkpoint.unlink, "is missing"),
    ):
        spoil()
        with pytest.raises(InputError, match=rf"b/fold1/best\.safetensors {words}.* run src/choose_ensemble\.py again"):
            read_ensemble(path, path.parent)


@pytest.mark.parametrize(("change", "words"), [
    ({"views": ["vflip"]}, "views: .*no view is named vflip.*again"),
    ({"experiments": {"a": -1}}, "experiments: .*weights must be above 0.*again"),
    ({"experiments": {"a": 1.0}}, "checkpoints: not of the experiments.*again"),
    ({"threshold": 3}, "threshold: .*again"), ({"checkpoints": None}, "checkpoints: .*again"), ("{", "Invalid JSON.*again"),
    (None, "cannot be read .*first"),
])  # fmt: skip
def test_a_spoilt_file_is_refused_in_one_line(path, change, words):
    text = json.dumps(json.loads(path.read_text()) | change) if isinstance(change, dict) else change
    path.write_text(text) if text else path.unlink()
    with pytest.raises(InputError, match=rf"ensemble\.json: {words}$") as error:
        read_ensemble(path, path.parent)
    assert "run src/choose_ensemble.py" in str(error.value)
