"""The machine's limits, and each part of the work as a share of them: `python benchmarks/limits.py`.

All in one run: matrix products and copies in memory, of which the fastest call counts, then the work, by its median,
beside a bare JPEG decoder's. A training step is counted as three forward passes, though no gradient goes into frozen
parts. Between them it says where the time of a training step goes.
"""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated

import cv2
import library  # noqa: F401
import numpy as np
import torch
import typer
from machine import describe_machine, headline
from torch.autograd import DeviceType
from torch.autograd.profiler import profile
from torch.optim.swa_utils import update_bn

from carvana import command
from carvana.config import Config
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos, open_train
from carvana.data.loader import Loading
from carvana.data.rle import encode_tensor
from carvana.device import DTYPES, Device, local_device
from carvana.experiment import load_experiment
from carvana.models import build_model
from carvana.prediction.backends import prepare_model
from carvana.prediction.predictor import Member, Predictor
from carvana.prediction.tta import TTA
from carvana.training.engine import forward_backward, send, update
from carvana.training.footprint import Footprint
from carvana.training.learner import Learner, build_learner

EXPERIMENTS = "unet_lite0,unet_resnet34_512"
PHOTO_SIZE = (1280, 1918)
CPU_SIDES = {"bf16": 2048, "fp16": 512, "no": 2048}  # of matrices: most CPUs have no fp16
COPIED = 2**28  # bytes, more than caches hold
IN_TURN = 64  # photos or masks, so that the next one is in no cache
PREDICTED_AT_ONCE = 4
PROFILED = 3  # steps, after two: the first ones pay for page faults
KINDS = {  # of operations, by parts of PyTorch's names
    "convolutions, backward": ("convolution_backward", "addmm_"),
    "convolutions, forward": ("convolution", "conv2d", "conv_depthwise"),
    "norms": ("batch_norm",),
    "activations": ("hardtanh", "clamp", "threshold", "relu"),
    "upsampling": ("upsample",),
    "copies and zeros": ("copy_", "fill_", "zero_", "aten::cat"),
    "all else": ("",),
}


def call_rate(
    work: Callable[[], object], device: torch.device, seconds: float, pick: Callable = statistics.median,
    clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """Calls of `work` a second, by the median of about `seconds`, or by the fastest call, `min`. One warms up.

    A call ends when the device has finished. `time.process_time`, for work on one core, leaves out what else runs.
    """
    started, times = time.monotonic(), []
    while len(times) < 2 or time.monotonic() - started < seconds:
        called = clock()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(clock() - called)
    return 1 / pick(times[1:])


def matmul_flops(device: Device, seconds: float) -> float:
    """Floating point operations a second of a square matrix product in the device's precision."""
    side = CPU_SIDES[device.precision] if device.device.type == "cpu" else 8192
    matrices = torch.randn(2, side, side, device=device.device).to(DTYPES[device.precision])
    return 2 * side**3 * call_rate(lambda: matrices[0] @ matrices[1], device.device, seconds, min)


def copied_bytes(device: torch.device, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes copied a second within the device's memory, each counted once."""
    source, target = torch.zeros(2, COPIED, dtype=torch.uint8, device=device)
    return COPIED * call_rate(lambda: target.copy_(source), device, seconds, min, clock)


def training_step(learner: Learner) -> tuple[Callable[[], bool], int]:
    """A step on random photos that are on the device, True if fp16 did not skip it; and their number."""
    stage, device = learner.stage, learner.accelerator.device
    shape = (stage.train.batch_size, *stage.data.train_size, 4)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    images, masks = send([part.permute(0, 3, 1, 2) for part in (pixels[..., :3], pixels[..., 3:])], learner)

    def step() -> bool:
        forward_backward(learner, images, masks)
        norm = learner.accelerator.clip_grad_norm_(learner.model.parameters(), stage.optim.clip)
        return update(learner, norm.item())

    learner.model.train()
    return step, len(images)


def train_rate(learner: Learner, seconds: float) -> float:
    """Photos a second of training steps."""
    step, photos = training_step(learner)
    return photos * call_rate(step, learner.accelerator.device, seconds)


def step_shares(learner: Learner) -> dict[str, float]:
    """The share of each of KINDS in the time of training steps that the device computes."""
    step, _ = training_step(learner)
    device = learner.accelerator.device.type
    for _ in range(2):
        step()
    with profile(use_device=None if device == "cpu" else device, use_kineto=device != "cpu") as profiler:
        for _ in range(PROFILED):
            step()
    times = Counter(dict.fromkeys(KINDS, 0))
    for event in profiler.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        if event.device_type == DeviceType.CPU:  # a GPU's kernels count in the operations that start them
            times[kind] += event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
    return {kind: microseconds / max(times.total(), 1) for kind, microseconds in times.items()}


class RandomPhotos:
    """What `Predictor` asks of photos, without a file to decode."""

    def __init__(self, size: Size):
        self.pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)

    def fitted(self, _image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        return [self.pixels for _ in fits], PHOTO_SIZE


def predict_rate(config: Config, device: Device, seconds: float) -> float:
    """Photos a second from network size to probabilities at photo size, with random weights and one view."""
    model = build_model(config.model, pretrained=False)
    # Without statistics of its own a random network can be so large that fused BatchNorms change its logits.
    update_bn([torch.randint(0, 256, (4, 3, 128, 192), dtype=torch.uint8)], model)
    member = Member(Fit.of(config.data), TTA(prepare_model(model, device, size=config.data.size), ["identity"]))
    predictor = Predictor([[member]], device, Loading(PREDICTED_AT_ONCE))
    predictions = predictor.predict(RandomPhotos(config.data.size), [""] * 10**6)
    work = lambda: list(itertools.islice(predictions, PREDICTED_AT_ONCE))
    rate = PREDICTED_AT_ONCE * call_rate(work, device.device, seconds)
    predictions.close()
    return rate


def train_flops(config: Config) -> int:
    """Floating point operations of one photo's training step."""
    return 3 * 2 * Footprint(config).macs()


def main(
    experiments: Annotated[str, typer.Option(help="Names in src/experiments, joined by commas.")] = EXPERIMENTS,
    input_root: command.InputOption = command.INPUT,
    cars: command.CarsOption = command.REPOSITORY / "benchmarks" / "sample_cars.txt",
    seconds: Annotated[float, typer.Option(min=0, help="Of each measurement.")] = 5.0,
) -> None:
    configs = [load_experiment(name, command.EXPERIMENTS).changed(earlier_stages=()) for name in experiments.split(",")]
    photos, device = open_train(input_root, cars), local_device()
    print(f"{headline(describe_machine(device))}, {seconds:g} s each")
    limits = lambda: [matmul_flops(device._replace(precision=precision), seconds) for precision in DTYPES]
    before, rates = limits(), [(config, *network_rates(config, device, seconds)) for config in configs]
    fastest = map(max, before, limits())  # measured on both sides: a machine may be busy for a while
    flops = dict(zip(DTYPES, fastest, strict=True))
    for precision, limit in flops.items():
        print(f"{'matrix product, ' + precision.replace('no', 'fp32'):40}{limit / 1e12:10.3f} TFLOP/s")
    print(f"{'copy':40}{copied_bytes(device.device, seconds) / 1e9:10.2f} GB/s")
    for config, precision, trained, predicted in rates:
        whole = Footprint(config.changed(data={"crop": None}))
        print_flops(f"{config.name}, training", trained, train_flops(config), flops[precision])
        print_flops(f"{config.name}, prediction", predicted, 2 * whole.macs(), flops[device.precision])
    for config in configs:
        shares = step_shares(build_learner(config, pretrained=False))
        print(f"a training step of {config.name}: " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in shares.items()))
    torch.set_num_threads(1)
    measure_files(photos, device.device, seconds)


def network_rates(config: Config, device: Device, seconds: float) -> tuple[str, float, float]:
    """The precision of training, and photos a second of training and prediction."""
    learner = build_learner(config, pretrained=False)
    return learner.device.precision, train_rate(learner, seconds), predict_rate(config, device, seconds)


def print_flops(name: str, rate: float, operations: int, limit: float) -> None:
    achieved = f"{rate * operations / 1e12:.3f} of {limit / 1e12:.3f} TFLOP/s"
    print_share(name, f"{rate:.2f} photos/s", achieved, rate * operations / limit)


def measure_files(photos: Photos, device: torch.device, seconds: float) -> None:
    """Prints what decoding makes of the bare decoder, and run lengths of a copy: all on one core, or on the GPU."""
    image_ids = photos.image_ids[:: max(1, len(photos.image_ids) // IN_TURN)][:IN_TURN]
    files = [np.frombuffer(photos.photo_part.read(photos.name(image_id)), np.uint8) for image_id in image_ids]
    masks = [torch.from_numpy(photos.mask(image_id)).to(device) for image_id in image_ids]
    cv2.setNumThreads(0)
    in_turn = lambda work, items: map(work, itertools.cycle(items)).__next__
    host, own = torch.device("cpu"), time.process_time
    decode = lambda data: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    bare = call_rate(in_turn(decode, files), host, seconds, clock=own)
    rate = call_rate(in_turn(photos.image, image_ids), host, seconds, clock=own)
    print_share("photo, read and decoded", f"{rate:.0f} photos/s", f"{rate:.0f} of {bare:.0f}", rate / bare)
    clock = own if device == host else time.perf_counter  # a GPU's time is not this process's
    copied = copied_bytes(device, seconds, clock)
    rate = call_rate(in_turn(encode_tensor, masks), device, seconds, clock=clock)
    encoded = rate * masks[0].numel()
    achieved = f"{encoded / 1e9:.2f} of {copied / 1e9:.2f} GB/s"
    print_share("mask to run lengths", f"{rate:.0f} masks/s", achieved, encoded / copied)


def print_share(name: str, rate: str, achieved: str, share: float) -> None:
    print(f"{name:40}{rate:>18}{achieved:>26}{100 * share:6.0f} %", flush=True)


if __name__ == "__main__":
    command.run(main)
