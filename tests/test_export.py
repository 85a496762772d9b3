"""ONNX files: the same logits as PyTorch, and facts enough to use them."""

import json
import sys

import pytest
import torch
from conftest import run_script

from carvana import onnx_model
from carvana.checkpoint import load_checkpoint, save_checkpoint
from carvana.errors import InputError
from carvana.models import build_model
from carvana.onnx_model import Difference, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A fold of experiment `tiny` in runs/, with a threshold; random weights."""
    config = tiny(data={"fit": "pad"}, model={"grad_checkpointing": True, "deep_supervision": True})
    torch.manual_seed(0)
    model = build_model(config.model, pretrained=False)
    path = tmp_path / "runs" / "tiny" / "fold1" / "best.safetensors"
    save_checkpoint(path, model, config, fold=1, epoch=2, dice=0.5, folds_digest="x")
    (path.parents[1] / "oof.json").write_text('{"threshold": 0.47}')
    return path


def test_a_fold_is_exported_checked_and_described(checkpoint, tmp_path):
    output = tmp_path / "out" / "tiny.onnx"
    options = ["--fold", 1, "--runs", tmp_path / "runs", "--output", output, "--size", "33x50"]
    printed = run_script("export.py", "tiny", *options, cwd=tmp_path).stdout
    assert "threshold 0.47" in printed
    assert "0.0000% of pixels differ" in printed
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (facts["height"], facts["width"], facts["fit"], facts["threshold"]) == (33, 50, "pad", 0.47)
    assert (facts["experiment"], facts["fold"], len(facts["mean"])) == ("tiny", 1, 3)
    model = load_checkpoint(checkpoint).model
    for number in (1, 5):
        photos = torch.randint(0, 256, (number, 3, 33, 50), dtype=torch.uint8)
        (logits,) = session.run(None, {"photos": photos.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(logits), model(photos), atol=1e-4, rtol=1e-4)
    assert [file.name for file in output.parent.iterdir()] == ["tiny.onnx"]


def test_a_file_that_differs_is_not_left(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "compare", lambda *_: Difference(logits=0.5, largest=3.0, pixels=0.0))
    with pytest.raises(InputError, match=r"not written: its logits differ by up to 0\.5"):
        export_onnx(load_checkpoint(checkpoint), tmp_path / "x.onnx", (32, 48))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("logits", "largest", "pixels", "fine"),
    [
        (1e-4, 0.1, 0, True),
        (5e-3, 0.1, 0, False),
        (5e-3, 20, 0, True),
        (1e-4, 20, 1e-3, False),
        (torch.nan, 1, 0, False),
    ],
)
def test_what_may_differ(logits, largest, pixels, fine):
    assert Difference(logits, largest, pixels).fine == fine


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="onnxscript: pip install onnx onnxscript onnxruntime"):
        onnx_model.import_onnxruntime()


def test_a_missing_fold_ends_in_one_line(tmp_path):
    result = run_script("export.py", "tiny", "--output", "x.onnx", "--runs", tmp_path, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert "no such checkpoint" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
