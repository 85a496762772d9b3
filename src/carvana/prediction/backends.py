"""What computes a trained model in prediction: PyTorch, PyTorch compiled, or OpenVINO. All give the same masks.

On a CPU with bfloat16 the weights themselves are bfloat16: autocast would convert them in each forward pass.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from carvana.data.geometry import Size
from carvana.device import Device
from carvana.errors import InputError
from carvana.models import Segmenter
from carvana.models.formats import FORMATS, choose_format
from carvana.prediction.fusion import fuse_norms

Model = Callable[[torch.Tensor], torch.Tensor]
"""Images (N, 3, H, W) uint8 to logits (N, 1, H, W) float32."""
SIZES = 8  # that OpenVINO keeps compiled: own photos may have many, and each takes memory
EXAMPLE = (2, 3, 64, 96)  # images on which the fused model is compared with the model


def prepare_model(model: Segmenter, device: Device, backend: str = "torch", size: Size = EXAMPLE[2:]) -> Model:
    """The model on the device, for images of `size`; the model itself is changed.

    Raises InputError if the backend is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend}: choose from {', '.join(BACKENDS)}")
    images = torch.randint(0, 256, EXAMPLE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fuse_norms(model.eval(), images.to(model.mean.device))
    return BACKENDS[backend](model, device, size)


class Native(nn.Module):
    """PyTorch, in the faster memory format; in the precision of the caller's autocast, or with weights in bfloat16."""

    def __init__(self, model: Segmenter, device: Device, size: Size):
        super().__init__()
        memory_format = FORMATS[choose_format(model, device, torch.Size((*EXAMPLE[:2], *size)))]
        self.model = model.lay_out(device.device, memory_format)
        self.casts = device.precision == "bf16" and device.device.type == "cpu"
        if self.casts:
            self.model.network.bfloat16()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False) if self.casts else nullcontext():
            return self.model(images).float()


class OpenVino:
    """Intel's runtime on the CPU, compiled anew for each size of images.

    A batch smaller than an earlier one of its size is filled up to that. Raises InputError if the device is no CPU or
    openvino is not installed.
    """

    def __init__(self, model: Segmenter, device: Device, size: Size):
        if device.device.type != "cpu":
            raise InputError(f"--backend openvino: computes on the CPU, not on {device.device.type}; leave it out")
        try:
            import openvino
        except ImportError:
            raise InputError("--backend openvino: pip install openvino") from None
        self.openvino, self.model = openvino, model
        able = "BF16" in self.openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.options = {"INFERENCE_PRECISION_HINT": "bf16" if device.precision == "bf16" and able else "f32"}
        self.compiled = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        size, count = images.shape[-2:], len(images)
        batch, network = self.compiled.get(size, (0, None))
        if count > batch:
            if batch == 0 and len(self.compiled) == SIZES:
                del self.compiled[next(iter(self.compiled))]  # the oldest
            self.compiled[size] = batch, network = count, self._compile(images)
        filled = torch.cat([images, images[:1].expand(batch - count, -1, -1, -1)]) if batch > count else images
        return torch.from_numpy(network(filled.contiguous().numpy())[0])[:count]

    def _compile(self, images: torch.Tensor):
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            graph = self.openvino.convert_model(self.model, example_input=images.contiguous(), input=[images.shape])
        return self.openvino.Core().compile_model(graph, "CPU", self.options)


BACKENDS: dict[str, Callable[[Segmenter, Device, Size], Model]] = {
    "torch": Native,
    "compile": lambda model, device, size: torch.compile(Native(model, device, size)),
    "openvino": OpenVino,
}
