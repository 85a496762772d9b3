import os

import pytest
import torch
from accelerate import PartialState

from carvana.device import Device, local_device, native_precision, open_devices, side_by_side
from carvana.errors import InputError


@pytest.mark.parametrize(("capability", "precision"), [((6, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")])
def test_a_gpus_precision_is_its_hardwares(capability, precision, monkeypatch):
    """A T4 (7.5) says that it supports bf16, and emulates it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "no")])
def test_a_cpus_precision_is_its_hardwares(supported, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert native_precision(torch.device("cpu")) == precision
    assert native_precision(torch.device("mps")) == "no"


def test_autocast_computes_in_the_devices_precision():
    images = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32)):
        with Device(torch.device("cpu"), precision).autocast():
            assert (images @ images).dtype == dtype


def test_all_gpus_share_a_prediction_or_the_cpu_does_it(monkeypatch):
    assert [str(device) for device in open_devices(2)] == [str(open_devices()[0])] * 2
    gpus = {"device": torch.device("cuda", 0), "num_processes": 1}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 3)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        patch.setattr("carvana.device.process_state", lambda: type("State", (), gpus))
        assert [device.device.index for device in open_devices()] == [0, 1, 2]
        assert [device.precision for device in open_devices(2)] == ["fp16", "fp16"]
        with pytest.raises(InputError, match="--devices 4: more than the GPUs of this machine, 3"):
            open_devices(4)
    assert [local_device(name).precision for name in ("bf16", "fp32")] == ["bf16", "no"]
    with pytest.raises(InputError, match="--precision fp64: choose from auto, bf16, fp16, fp32"):
        local_device("fp64")
    monkeypatch.setattr(PartialState(cpu=True), "num_processes", 2)
    with pytest.raises(InputError, match="started by torchrun"):
        open_devices()


def test_what_fails_in_a_process_ends_the_others():
    with pytest.raises(ZeroDivisionError):
        side_by_side(eval, [("__import__('time').sleep(600)",), ("1 / 0",)])
    with pytest.raises(InputError, match="a process was killed"):
        side_by_side(os._exit, [(9,), (9,)])
