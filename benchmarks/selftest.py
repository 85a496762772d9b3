"""Every shipped experiment for some seconds on this device, as JSON: `python benchmarks/selftest.py`.

Random weights and photos: neither weights nor the competition's files are needed. With `--input` the loader is timed.
"""

import time
from pathlib import Path
from typing import Annotated

import library  # noqa: F401
import torch
import typer
from accelerate.utils.memory import clear_device_cache
from limits import matmul_flops, predict_rate, train_flops, train_rate, training_step
from loader import SHIPPED, WORKERS, epoch_rates
from machine import describe_machine, headline

from carvana import command
from carvana.config import Config
from carvana.data.images import Photos, open_train
from carvana.device import Device, local_device
from carvana.errors import InputError, is_out_of_memory
from carvana.experiment import load_experiment
from carvana.log import write_json
from carvana.training.footprint import GIB, Footprint
from carvana.training.learner import build_learner

MEASURED = 0.5  # of an experiment's time; the rest is for building models and for first steps


def main(
    minutes: Annotated[float, typer.Option(min=0)] = 5.0,
    output: Annotated[Path, typer.Option(help="JSON, written anew after each experiment.")] = Path("selftest.json"),
    input_root: Annotated[Path | None, typer.Option("--input", help="The competition's files, for the loader.")] = None,
    experiments: Annotated[str, typer.Option(help="Names in src/experiments, joined by commas.")] = ",".join(SHIPPED),
    scale: Annotated[float, typer.Option(min=0, max=1, help="Of the network sizes: for a try on a CPU.")] = 1.0,
) -> None:
    deadline = time.monotonic() + 60 * minutes
    names, photos, device = experiments.split(","), input_root and open_train(input_root), local_device()
    facts = describe_machine(device)
    peak = matmul_flops(device, min(2.0, 6 * minutes))
    print(f"{headline(facts)}; matrix product {peak / 1e12:.2f} TFLOP/s")
    report = {"device": facts["device"], "torch": facts["versions"]["torch"], "experiments": {}}
    for number, name in enumerate(names):
        config = scaled(load_experiment(name, command.EXPERIMENTS), scale)
        now = time.monotonic()
        end = now + (deadline - now) / (len(names) - number)
        try:
            result = measure(config, device, photos, peak, end)
        except (InputError, RuntimeError) as error:
            if not (isinstance(error, InputError) or is_out_of_memory(error)):  # after those the others go on
                raise
            result = {"error": str(error)}
        report["experiments"][name] = result
        print(f"{name:27}{result}", flush=True)
        write_json(output, report)


def scaled(config: Config, scale: float) -> Config:
    """The last stage, its sizes made smaller in multiples of 32; padding would keep the photo's size."""
    if scale == 1:
        return config.changed(earlier_stages=())
    shrink = lambda size: size and [max(1, round(scale * side / 32)) * 32 for side in size]
    data = {"size": shrink(config.data.size), "crop": shrink(config.data.crop), "fit": "resize"}
    return config.changed(data=data, earlier_stages=())


def measure(config: Config, device: Device, photos: Photos | None, peak: float, end: float) -> dict:
    """All figures of an experiment; what is timed shares the time until `end`."""
    share = lambda parts: max(0.0, MEASURED * (end - time.monotonic()) / parts)
    computed, trained = Footprint(config).configured_bytes(device.precision), {}
    loaded = photos and next(epoch_rates(config.changed(data={"num_workers": WORKERS}), photos))[0]
    memory = {}
    for parts, layout in ((3, "channels_last"), (2, "contiguous")):
        clear_device_cache(garbage_collection=True)
        learner = build_learner(config.changed(train={"memory_format": layout}), pretrained=False)
        step, _ = training_step(learner)
        any(step() for _ in range(20))  # cuDNN tries algorithms, and takes memory for it; fp16 finds its scale
        clear_device_cache(garbage_collection=True)
        torch.accelerator.reset_peak_memory_stats()
        trained[layout] = train_rate(learner, share(parts))
        memory[layout] = torch.accelerator.max_memory_allocated() / GIB or None
        del learner, step
    clear_device_cache(garbage_collection=True)
    return {
        "train_photos_per_second": trained,
        "memory_gib": memory,
        "computed_gib": computed / GIB,
        "share_of_peak": max(trained.values()) * train_flops(config) / peak,
        "predict_photos_per_second": predict_rate(config, device, share(1)),
        "loader_photos_per_second": loaded,
    }


if __name__ == "__main__":
    command.run(main)
