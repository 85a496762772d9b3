"""Exports a trained fold to ONNX: `python src/export.py unet_lite0 --fold 0 --output unet_lite0.onnx`.

The file takes photos (N, 3, height, width), uint8 RGB at network size, any number at once, and gives logits
(N, 1, height, width). Height and width are fixed; they and how to bring photos there are in its metadata.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from carvana.checkpoint import load_checkpoint
from carvana.command import RUNS, RunsOption, parse_size, run
from carvana.errors import InputError
from carvana.onnx_model import OPSET, export_onnx, import_onnxruntime


def main(
    experiment: Annotated[str, typer.Argument(help="Name under runs/, or a path to a .safetensors checkpoint.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    fold: Annotated[int, typer.Option(help="Which fold of the experiment.")] = 0,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, if not what it was trained at.")] = None,
    opset: Annotated[int, typer.Option(min=OPSET, help="Version of ONNX's operators.")] = OPSET,
    runs: RunsOption = RUNS,
) -> None:
    import_onnxruntime()
    path = find_checkpoint(experiment, runs, fold)
    checkpoint = load_checkpoint(path)
    height, width = parse_size(size) if size else checkpoint.config.data.size
    threshold = read_threshold(path)
    difference = export_onnx(checkpoint, output, (height, width), opset, threshold)
    print(f"{output}: {path}, photos of {height}x{width}, {output.stat().st_size / 2**20:.1f} MiB")
    print(f"  threshold {'not chosen yet: evaluate first' if threshold is None else threshold}")
    print(
        f"  against PyTorch, on random photos: logits within {difference.logits:.1e} "
        f"(the largest is {difference.largest:.1f}), {difference.pixels:.4%} of pixels differ at 0.5"
    )


def find_checkpoint(experiment: str, runs: Path, fold: int) -> Path:
    if experiment.endswith(".safetensors"):
        path = Path(experiment)
    else:
        path = runs / experiment / f"fold{fold}" / "best.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train the fold, or give the path of a .safetensors file")
    return path


def read_threshold(checkpoint: Path) -> float | None:
    """The one that src/evaluate.py chose for the experiment, if it has run."""
    oof = checkpoint.absolute().parents[1] / "oof.json"
    return json.loads(oof.read_text())["threshold"] if oof.is_file() else None


if __name__ == "__main__":
    run(main)
