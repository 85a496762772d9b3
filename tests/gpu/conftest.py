"""These tests need a GPU: without CUDA none is collected.

They need pytest and the library alone, and run by themselves, too: `PYTHONPATH=src python -m pytest tests/gpu`.
"""

import pytest
import torch
from accelerate.state import AcceleratorState

from carvana.device import Device, local_device

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its first precision for the process; each test starts without one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def device() -> Device:
    return local_device()
