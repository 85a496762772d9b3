"""These tests need a GPU: without CUDA none is collected.

`make test-gpu`, or with pytest and the library alone:
`PYTHONPATH=src python -m pytest --confcutdir tests/gpu tests/gpu`.
"""

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache

from carvana.device import Device, local_device

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its first precision for the process, learners their memory; each test starts without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    clear_device_cache(garbage_collection=True)


@pytest.fixture
def device() -> Device:
    return local_device()
