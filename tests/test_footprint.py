import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from carvana.config import ModelConfig
from carvana.engine import forward_backward, update
from carvana.footprint import Footprint, MemoryTracker
from carvana.learner import build_learner
from carvana.models import dense

UNET = {"encoder": "test_efficientnet", "decoder_channels": [64, 48, 32, 24, 16]}
DEFAULTS = ModelConfig().model_dump(include={"encoder", "decoder_channels"})  # what vanilla_unet does not use
VANILLA = DEFAULTS | {"architecture": "vanilla_unet", "base_width": 8}


def test_the_tracker_counts_storages_while_they_live():
    with MemoryTracker() as tracker:
        one = torch.zeros(1000, device="meta")
        view = one[:10]
        two = one + one
        assert (tracker.live, tracker.peak) == (8000, 8000)
        del one, two
        assert tracker.live == 4000  # the view holds on to all of it
        del view
    assert (tracker.live, tracker.peak) == (0, 8000)


def allocated_in_a_step(config) -> int:
    """Peak of what PyTorch's CPU allocator hands out in a real step, with what was there before it."""
    learner = build_learner(config)
    learner.begin_epoch()
    height, width = config.data.size
    images = torch.randint(0, 256, (config.train.batch_size, 3, height, width), dtype=torch.uint8)
    masks = images[:, :1].clone()
    for _ in range(2):  # the first one makes AdamW's moments
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            losses = forward_backward(learner, images, masks)
            update(learner, losses.mean().item())
    standing = [*learner.model.state_dict().values(), *learner.ema.module.state_dict().values(), images, masks]
    standing += [moment for state in learner.optimizer.state.values() for moment in state.values()]
    live = peak = sum(tensor.nbytes for tensor in standing)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (UNET, {"batch_size": 2}),
        (UNET, {"batch_size": 4, "micro_batch": 2}),
        (UNET | {"deep_supervision": True}, {"batch_size": 2}),
        (UNET | {"grad_checkpointing": True}, {"batch_size": 2}),
        (UNET | {"encoder": "test_convnext", "stem_channels": 8}, {"batch_size": 2}),
        (VANILLA, {"batch_size": 2}),
    ],
    ids=["unet", "micro-batches", "deep supervision", "checkpointing", "convnext", "vanilla"],
)
def test_computed_memory_is_what_a_real_step_allocates(tiny, model, train, monkeypatch):
    """Without the frames of dense.py, which only a CPU without AVX-512 makes: what is computed is a GPU's memory."""
    monkeypatch.setattr(dense, "is_slow", lambda _: False)
    config = tiny(data={"size": [128, 192]}, model=model, train=train)
    assert Footprint(config).configured_bytes("no") == pytest.approx(allocated_in_a_step(config), rel=0.03)
