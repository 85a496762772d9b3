"""What a step of training costs before it is run: parameters, multiplications, peak memory of a GPU.

The step is run on tensors of PyTorch's `meta` device, which have shapes and types and no data, so that a machine
without a GPU can say what will fit one. Counted is what the step allocates: weights, gradients, AdamW's moments, the
averaged weights, the batch, activations kept for backward and what is in passing. Not counted is what lies outside of
PyTorch's tensors: `OVERHEAD` is allowed for it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from carvana.config import Config
from carvana.geometry import Size
from carvana.losses import weighted_sum
from carvana.models import build_model
from carvana.optim import build_optimizer, freeze_norm

GIB = 2**30
OVERHEAD = 1 * GIB  # CUDA's context, cuDNN's workspaces, fragments that the allocator cannot use
T4 = int(14.5 * GIB)  # what PyTorch sees of the card's 16 GB
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
IN_PRECISION = {"conv2d", "conv_transpose2d", "linear", "matmul", "__matmul__", "bmm", "scaled_dot_product_attention"}
IN_FLOAT32 = {"layer_norm", "group_norm", "softmax"}


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak, while the mode is on."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Counts the tensor's storage, once, until nothing holds it any more."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def forget(_: weakref.ref) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


class _GpuCasts(TorchFunctionMode):
    """CUDA's autocast for the operations that these networks have: `torch.autocast` does not know meta tensors."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in IN_PRECISION or name in IN_FLOAT32:
            dtype = self.dtype if name in IN_PRECISION else torch.float32
            cast = lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def autocast(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The modules that have weights compute as under CUDA's autocast, also where backward computes them again."""
    modules = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    for module in modules:
        module.forward = _under(_GpuCasts(dtype), module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _under(casts: _GpuCasts, forward: Callable) -> Callable:
    @wraps(forward)
    def run(*args, **kwargs):
        with casts:
            return forward(*args, **kwargs)

    return run


class Footprint:
    """What the training of an experiment's stage costs. Random weights: neither the hub nor a file is needed."""

    def __init__(self, config: Config):
        self.config = config
        self.model = build_model(config.model, pretrained=False).to("meta", memory_format=torch.channels_last)
        self._averaged = deepcopy(self.model)
        self._optimizer = build_optimizer(self.model, config.optim)
        for group in self._optimizer.param_groups:
            group["foreach"] = True  # as on a GPU
        self._zero_gradients()
        self._optimizer.step()  # there are moments from now on
        self._optimizer.zero_grad()

    @property
    def size(self) -> Size:
        """Height and width that are trained on."""
        return self.config.data.crop or self.config.data.size

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the encoder (0 if the architecture has none), and of all the rest."""
        encoder = getattr(self.model.network, "encoder", None)
        inside = sum(parameter.numel() for parameter in encoder.parameters()) if encoder else 0
        return inside, sum(parameter.numel() for parameter in self.model.parameters()) - inside

    @torch.no_grad()
    def macs(self) -> int:
        """Multiply-accumulates of one photo's forward pass, at the size that is trained on."""
        counter = FlopCounterMode(display=False)
        with counter:
            self._averaged.eval()(self._photos(1, 3))
        return counter.get_total_flops() // 2

    def step_bytes(self, batch_size: int, micro_batch: int | None, precision: str) -> int:
        """Peak of a step, in bytes of tensors. `precision` is accelerate's: bf16, fp16 or no."""
        micro_batch = min(micro_batch or batch_size, batch_size)
        self.model.train()
        if self.config.optim.frozen_norm:
            freeze_norm(self.model.network.encoder)
        tracker, loss = MemoryTracker(), weighted_sum(self.config.loss)
        with autocast(self.model, DTYPES[precision]), tracker:
            for tensor in self._standing():
                tracker.add(tensor)
            images, masks = self._photos(batch_size, 3), self._photos(batch_size, 1)
            parts = list(zip(images.split(micro_batch), masks.split(micro_batch), strict=True))
            for some_images, some_masks in parts[:2]:  # the second one finds gradients there
                logits = self.model(some_images).float()
                loss(logits, some_masks.float() / 255).sum().backward()
                del logits
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return tracker.peak

    def configured_bytes(self, precision: str) -> int:
        """`step_bytes` of the configured batch."""
        return self.step_bytes(self.config.train.batch_size, self.config.train.micro_batch, precision)

    def largest_batch(self, room: int, precision: str) -> int:
        """Photos of the largest micro-batch whose step takes `room` bytes; 0 if not even one does.

        Extrapolated from one and two photos: all that depends on their number is proportional to it.
        """
        one, two = (self.step_bytes(2 * photos, photos, precision) for photos in (1, 2))
        return max(0, 1 + (room - one) // (two - one))

    def _photos(self, number: int, channels: int) -> torch.Tensor:
        return torch.zeros(number, channels, *self.size, dtype=torch.uint8, device="meta")

    def _zero_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def _standing(self) -> Iterator[torch.Tensor]:
        """What is there between two steps."""
        for model in (self.model, self._averaged):
            yield from model.state_dict().values()
        for state in self._optimizer.state.values():
            yield from state.values()
