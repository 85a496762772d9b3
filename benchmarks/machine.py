"""What a benchmark ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from carvana.device import Device
from carvana.provenance import git_commit, versions

SMP = "segmentation_models_pytorch"


def describe_machine(device: Device) -> dict:
    """Processor, cores, precision, versions and commit, for the JSON files."""
    try:
        smp = {SMP: version(SMP)}
    except PackageNotFoundError:
        smp = {}
    return {
        "device": device_name(device.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": "float32" if device.precision == "no" else device.precision,
        "versions": versions() | smp,
        "commit": git_commit(),
    }


def machine_settings(device: Device) -> dict:
    """In what a kept result must agree with this machine."""
    facts = describe_machine(device)
    return {key: facts[key] for key in ("device", "cores", "threads", "precision")}


def device_name(device: torch.device) -> str:
    """The GPU's, or the CPU's with what decides about bf16."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The CPU's name, and those of its instruction sets that decide about bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(sets)})"


def headline(facts: dict) -> str:
    return f"{facts['device']}, {facts['cores']} cores, {facts['precision']}, torch {facts['versions']['torch']}"
