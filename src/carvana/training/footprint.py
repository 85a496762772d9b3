"""What a step of training costs before it is run: parameters, multiplications, peak memory of a GPU.

The step is run on tensors of PyTorch's `meta` device, which have shapes and types and no data, so that a machine
without a GPU can say what will fit. Only PyTorch's tensors are counted: `OVERHEAD` is allowed for all else.
"""

import weakref
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from carvana.config import Config
from carvana.data.geometry import Size
from carvana.device import DTYPES
from carvana.models import build_model
from carvana.training.losses import weighted_sum
from carvana.training.optim import build_optimizer

GIB = 2**30
OVERHEAD = 1 * GIB  # CUDA's context, cuDNN's workspaces, fragments that the allocator cannot use
T4 = int(14.5 * GIB)  # what PyTorch sees of the card's 16 GB
IN_PRECISION = {"conv2d", "conv_transpose2d", "linear", "matmul", "__matmul__", "bmm", "scaled_dot_product_attention"}
IN_FLOAT32 = {"layer_norm", "group_norm", "softmax"}


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak, while the mode is on."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, result)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Counts the tensor's storage, once, until nothing holds it any more."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            weakref.finalize(storage, self._forget, key, size)
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._storages.remove(key)
        self.live -= size


class GpuCasts(TorchFunctionMode):
    """CUDA's autocast for the operations that these networks have: `torch.autocast` does not know meta tensors."""

    dtype = torch.float32

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in IN_PRECISION or name in IN_FLOAT32:
            dtype = self.dtype if name in IN_PRECISION else torch.float32
            cast = lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
        return func(*args, **kwargs)

    def around(self, forward: Callable) -> Callable:
        """`forward` under this mode, also where backward, which PyTorch runs outside of it, computes it again."""

        def cast_forward(*args, **kwargs):
            with self:
                return forward(*args, **kwargs)

        return cast_forward


class Footprint:
    """What the training of an experiment's stage costs. Random weights: neither the hub nor a file is needed."""

    def __init__(self, config: Config):
        self.config = config
        self.size: Size = config.data.train_size
        self.model = build_model(config.model, pretrained=False).to("meta", memory_format=torch.channels_last)
        self._averaged, self._casts = deepcopy(self.model), GpuCasts()
        self._optimizer = build_optimizer(self.model, config.optim)
        for group in self._optimizer.param_groups:
            group["foreach"] = True  # as on a GPU
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()  # there are moments from now on
        self._optimizer.zero_grad()
        for module in self.model.modules():
            if list(module.parameters(recurse=False)):
                module.forward = self._casts.around(module.forward)

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the encoder (0 if the architecture has none), and of all other parts."""
        count = lambda module: sum(parameter.numel() for parameter in module.parameters())
        inside = count(getattr(self.model.network, "encoder", nn.Identity()))
        return inside, count(self.model) - inside

    @torch.no_grad()
    def macs(self) -> int:
        """Multiply-accumulates of one photo's forward pass."""
        with FlopCounterMode(display=False) as counter:
            self._averaged.eval()(self._photos(1, 3))
        return counter.get_total_flops() // 2

    def step_bytes(self, batch_size: int, micro_batch: int, precision: str) -> int:
        """Peak of a step, in bytes of tensors. `precision` is accelerate's: bf16, fp16 or no."""
        self.model.train()
        self._casts.dtype, loss = DTYPES[precision], weighted_sum(self.config.loss)
        with MemoryTracker() as tracker:
            for tensors in (self.model.state_dict(), self._averaged.state_dict(), *self._optimizer.state.values()):
                for tensor in tensors.values():
                    tracker.add(tensor)
            images, masks = self._photos(batch_size, 3), self._photos(batch_size, 1)
            parts = list(zip(images.split(micro_batch), masks.split(micro_batch), strict=True))
            for part_images, part_masks in parts[:2]:  # the second one finds gradients in place
                logits = self.model(part_images).float()
                loss(logits, part_masks.float() / 255).sum().backward()
                del logits
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return tracker.peak

    def configured_bytes(self, precision: str) -> int:
        """`step_bytes` of the configured batch."""
        return self.step_bytes(self.config.train.batch_size, self.config.train.at_once, precision)

    def largest_batch(self, room: int, precision: str) -> int:
        """Photos of the largest micro-batch whose step fits into `room` bytes; 0 if not even one does.

        Extrapolated from one and two photos: all that depends on their number is proportional to it.
        """
        single, double = (self.step_bytes(2 * photos, photos, precision) for photos in (1, 2))
        return max(0, 1 + (room - single) // (double - single))

    def _photos(self, number: int, channels: int) -> torch.Tensor:
        return torch.zeros(number, channels, *self.size, dtype=torch.uint8, device="meta")
