"""Where and how networks are computed: the processes, the device, the precision that is native to it."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import active_children, connection, get_context, parent_process
from typing import NamedTuple

import torch
from accelerate import PartialState as Processes

from carvana.command import set_up
from carvana.errors import InputError
from carvana.log import silence

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}  # by accelerate's name


class Device(NamedTuple):
    """A device and accelerate's name of a precision: bf16, fp16 or no."""

    device: torch.device
    precision: str = "no"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no")

    @property
    def name(self) -> str:
        """Such as `Tesla T4`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def __str__(self) -> str:
        """Such as `Tesla T4, fp16`."""
        return f"{self.name}, {self.precision}"

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


def local_device(precision: str = "auto") -> Device:
    """The device of this process, and its native precision or another: bf16, fp16 or fp32."""
    return Device(process_state().device, chosen_precision(precision))


def open_devices(count: int | None = None, precision: str = "auto") -> list[Device]:
    """The devices that share a prediction: all GPUs, or so many; the CPU once, or so many times.

    Raises InputError if there are fewer GPUs, or in a process of torchrun: each would do all the work.
    """
    first, state = local_device(precision), process_state()
    if state.num_processes > 1:
        raise InputError("started by torchrun: give the same command to python; --devices shares its work")
    if first.device.type != "cuda":
        return [first] * (count or 1)
    gpus = torch.cuda.device_count()
    if (count or 1) > gpus:
        raise InputError(f"--devices {count}: more than the GPUs of this machine, {gpus}; give fewer, or leave it out")
    return [first._replace(device=torch.device("cuda", index)) for index in range(count or gpus)]


def share(items: Sequence, number: int, count: int) -> Sequence:
    """The part `number` (from 0) of `count` parts of `items`: neighbours, as many as in the other parts or one more.

    All work is cut so: a sample's blocks into shards, a shard's missing blocks or a fold's batches among devices.
    """
    return items[len(items) * number // count : len(items) * (number + 1) // count]


def side_by_side(work: Callable, calls: Sequence[tuple]) -> list:
    """What `work` returns for the arguments of each call: all at once, each in a process of its own if there are more.

    The first one prints, for all. What one raises ends them all; so does InputError if one is killed.
    """
    if len(calls) == 1:
        return [work(*calls[0])]
    threads = max(1, torch.get_num_threads() // len(calls))
    options = {"mp_context": get_context("spawn"), "initializer": _begin_process, "initargs": (threads,)}
    with ProcessPoolExecutor(len(calls), **options) as pool:
        pending = [pool.submit(_work_as, number, work, call) for number, call in enumerate(calls)]
        try:
            ended = wait(pending, return_when=FIRST_EXCEPTION).done
            for failed in (future for future in ended if future.exception()):
                failed.result()
            return [future.result() for future in pending]
        except BrokenProcessPool:
            advice = "give the same command again, with fewer --devices or a smaller --batch-size"
            raise InputError(f"a process was killed, perhaps for want of memory: {advice}") from None
        finally:
            for child in active_children():
                child.terminate()


def _begin_process(threads: int) -> None:
    set_up()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process gets it too, and ends this one
    end_with_parent()


def _work_as(number: int, work: Callable, call: tuple) -> object:
    if number:
        silence()
    return work(*call)


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that is killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def native_precision(device: torch.device) -> str:
    """bf16 where the hardware computes in it, else fp16 on a GPU, else none.

    A T4 says that it supports bf16 and emulates it; what counts is the compute capability (8.0 is Ampere).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def chosen_precision(precision: str) -> str:
    """accelerate's name of a precision; `auto` is the native one. Raises InputError if it is unknown."""
    if precision == "auto":
        return native_precision(process_state().device)
    names = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
    if precision not in names:
        raise InputError(f"--precision {precision}: choose from auto, {', '.join(names)}")
    return names[precision]
