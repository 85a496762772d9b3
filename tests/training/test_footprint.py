import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from carvana.config import ModelConfig
from carvana.training import learner as learner_module
from carvana.training.engine import forward_backward, update
from carvana.training.footprint import GIB, Footprint
from carvana.training.learner import build_learner

UNET = {"encoder": "test_efficientnet", "decoder_channels": [64, 48, 32, 24, 16]}
DEFAULTS = ModelConfig().model_dump(include={"encoder", "decoder_channels"})  # what vanilla_unet does not use
VANILLA = DEFAULTS | {"architecture": "vanilla_unet", "base_width": 8}


def allocated_in_a_step(config) -> int:
    """Peak of what PyTorch's CPU allocator hands out in a real step, with what stands before it."""
    learner = build_learner(config, pretrained=False)
    learner.model.train()
    images = torch.randint(0, 256, (config.train.batch_size, 3, *config.data.size), dtype=torch.uint8)
    masks = images[:, :1].clone()
    for _ in range(2):  # the first one makes AdamW's moments
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            forward_backward(learner, images, masks)
            update(learner, learner.accelerator.clip_grad_norm_(learner.model.parameters(), 1.0).item())
    standing = [*learner.model.state_dict().values(), *learner.ema.module.state_dict().values(), images, masks]
    standing += [moment for state in learner.optimizer.state.values() for moment in state.values()]
    live = peak = sum(tensor.nbytes for tensor in standing)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


CASES = {
    "micro-batches": {"model": UNET | {"deep_supervision": True}, "train": {"batch_size": 4, "micro_batch": 2}},
    "checkpointing": {"model": UNET | {"grad_checkpointing": True}},
    "frozen parts": {"model": UNET | {"pretrained": True, "frozen_parts": 3}},
    "frozen depthwise": {"model": UNET | {"pretrained": True, "frozen_depthwise": True}},
    "convnext": {"model": UNET | {"encoder": "test_convnext", "stem_channels": 8}},
    "vanilla": {"model": VANILLA},
    "muon": {"model": UNET, "optim": {"optimizer": "muon"}},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_computed_memory_is_what_a_real_step_allocates(tiny, settings, monkeypatch):
    """Without the convolutions of models/cpu.py: what is computed is a GPU's memory."""
    monkeypatch.setattr(learner_module, "speed_up_convolutions", lambda model: None)
    config = tiny(**{"train": {"batch_size": 2}} | settings, data={"size": [128, 192]})
    assert Footprint(config).configured_bytes("no") == pytest.approx(allocated_in_a_step(config), rel=0.03)


def test_crops_and_micro_batches_need_less_and_the_largest_batch_is_the_last_that_fits(tiny):
    whole, room = Footprint(tiny(data={"size": [256, 384]})), GIB // 2
    needed, cropped = whole.configured_bytes("fp16"), Footprint(tiny(data={"size": [256, 384], "crop": [128, 192]}))
    assert max(whole.step_bytes(8, 2, "fp16"), cropped.configured_bytes("fp16")) < 0.5 * needed
    assert whole.configured_bytes("no") > 1.4 * needed
    most = whole.largest_batch(room, "fp16")
    assert whole.step_bytes(2 * most, most, "fp16") <= room < whole.step_bytes(2 * most + 2, most + 1, "fp16")


def test_multiplications_of_a_hand_counted_network(tiny):
    footprint = Footprint(tiny(data={"size": [16, 16]}, model=VANILLA | {"base_width": 2, "border": 0}))
    first, second = 3 * 2 * 9, 2 * 2 * 9  # multiplications a pixel of the two finest convolutions
    down = sum(((w * 2 * w + 4 * w * w) * 9) / (4**level) for level, w in enumerate((2, 4, 8, 16), start=1))
    up = sum(((3 * w * w) + w * w) * 9 / (4**level) for level, w in enumerate((2, 4, 8, 16)))
    assert footprint.macs() == 256 * (first + second + down + up + 2)
    assert footprint.parameters[0] == 0
