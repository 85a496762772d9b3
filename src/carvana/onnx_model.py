"""A trained fold as an ONNX file: written, described, and checked against PyTorch before it is there."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from carvana.checkpoint import Checkpoint
from carvana.errors import InputError
from carvana.geometry import Size
from carvana.log import replacing
from carvana.provenance import git_commit

OPSET = 18  # what torch.onnx writes without converting
LOGIT_TOLERANCE = 1e-3  # of the largest logit, or of 1 if all are smaller
PIXEL_TOLERANCE = 1e-4  # share of pixels that may fall on the other side of 0.5
PHOTOS, LOGITS = "photos", "logits"


@dataclass(frozen=True)
class Difference:
    """Between the file and PyTorch: largest of a logit, and share of pixels on different sides of probability 0.5."""

    logits: float
    largest: float  # of the logits themselves
    pixels: float

    @property
    def fine(self) -> bool:
        return self.logits <= LOGIT_TOLERANCE * max(1.0, self.largest) and self.pixels <= PIXEL_TOLERANCE


def import_onnxruntime():
    """onnxruntime, if it and what torch.onnx needs are installed. Raises InputError otherwise."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export needs {error.name}: pip install onnx onnxscript onnxruntime") from None
    return onnxruntime


def export_onnx(
    checkpoint: Checkpoint, path: Path, size: Size, opset: int = OPSET, threshold: float | None = None
) -> Difference:
    """Writes photos (N, 3, height, width) uint8 to logits (N, 1, height, width) float32, for any N and this size.

    Normalization, and padding to what the network needs, are inside. The file is left only if its logits are
    PyTorch's; else raises InputError, as also if a library is missing.
    """
    import_onnxruntime()
    with replacing(path) as temporary:
        program = torch.onnx.export(
            checkpoint.model, (random_photos(2, size),), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("photos", min=1)},), input_names=[PHOTOS], output_names=[LOGITS],
        )  # fmt: skip
        facts = describe(checkpoint, size, threshold)
        program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
        program.save(temporary, external_data=False)
        difference = compare(checkpoint.model, temporary, size)
        if not difference.fine:
            raise InputError(
                f"{path}: not written: its logits differ by up to {difference.logits:.2g} from PyTorch's, and "
                f"{difference.pixels:.4%} of the pixels; try another --opset"
            )
    return difference


def describe(checkpoint: Checkpoint, size: Size, threshold: float | None) -> dict:
    """What has to be known to use the file, and where it comes from."""
    config, network = checkpoint.config, checkpoint.model.network
    return {
        "input": "uint8 RGB in 0..255, not normalized: the file does it",
        "output": "logits of the car's coverage; probability is their sigmoid",
        "height": size[0], "width": size[1], "fit": config.data.fit,
        "mean": list(network.mean), "std": list(network.std), "threshold": threshold,
        "experiment": config.name, "fold": checkpoint.fold, "dice": checkpoint.dice,
        "checkpoint": checkpoint.digest, "commit": git_commit(),
    }  # fmt: skip


@torch.inference_mode()
def compare(model: torch.nn.Module, path: Path, size: Size) -> Difference:
    """Runs both on random photos, one and three at once."""
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    found, expected = [], []
    for photos in (random_photos(1, size), random_photos(3, size)):
        found.append(torch.from_numpy(session.run([LOGITS], {PHOTOS: photos.numpy()})[0]))
        expected.append(model(photos))
    found, expected = torch.cat(found), torch.cat(expected)
    return Difference(
        (found - expected).abs().max().item(),
        expected.abs().max().item(),
        ((found >= 0) != (expected >= 0)).float().mean().item(),
    )


def random_photos(number: int, size: Size) -> torch.Tensor:
    """Noise, the same each time: (number, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=generator)
