"""Where and how networks are computed: the processes, the device, the precision that is native to it."""

import resource
import sys
from datetime import timedelta
from typing import NamedTuple

import torch
from accelerate import PartialState as Processes

from carvana.log import silence

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}  # by accelerate's name


class Device(NamedTuple):
    """A device and accelerate's name of a precision: bf16, fp16 or no."""

    device: torch.device
    precision: str = "no"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no")

    def __str__(self) -> str:
        """Such as `Tesla T4, fp16`."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{name}, {self.precision}"

    def peak_memory(self) -> str:
        """Largest resident set of this process, and on a GPU what tensors took there."""
        unit = 1024**2 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit} MiB"
        if self.device.type != "cuda":
            return host
        return f"{host} and {torch.cuda.max_memory_allocated(self.device) >> 20} MiB on the GPU"


def process_state(**options) -> Processes:
    """This process among those that torchrun started, or alone. The first call's options go to PyTorch's process group.

    Without a GPU accelerate needs `cpu=True`: each of torchrun's processes would take itself for the only one.
    """
    return Processes(cpu=not torch.accelerator.is_available(), **options)


def join_processes() -> Processes:
    """The processes of torchrun, of which one prints. They wait up to a week for one another's photos."""
    state = process_state(timeout=timedelta(days=7))
    if not state.is_main_process:
        silence()
    return state


def local_device() -> Device:
    """The device of this process and its native precision."""
    device = process_state().device
    return Device(device, native_precision(device))


def native_precision(device: torch.device) -> str:
    """bf16 where the hardware computes in it, else fp16 on a GPU, else none.

    A T4 says that it supports bf16 and emulates it; what counts is the compute capability (8.0 is Ampere).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def chosen_precision(precision: str) -> str:
    """accelerate's name of a configured precision; `auto` is the native one."""
    return native_precision(process_state().device) if precision == "auto" else precision.replace("fp32", "no")
