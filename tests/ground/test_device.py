import pytest
import torch

from carvana.device import Device, native_precision


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
