import math

import pytest
import torch
from accelerate.state import AcceleratorState

from carvana.command import EXPERIMENTS
from carvana.data.geometry import Fit
from carvana.data.loader import Loading
from carvana.data.rle import encode_tensor, rle_encode
from carvana.device import Device
from carvana.evaluation.metrics import dice
from carvana.experiment import load_experiment
from carvana.models import MODELS, build_model
from carvana.prediction.backends import prepare_model
from carvana.prediction.encoding import cut
from carvana.prediction.predictor import Member, Predictor
from carvana.prediction.tta import TTA
from carvana.training.engine import send
from carvana.training.footprint import Footprint
from carvana.training.learner import Learner, build_learner
from gpu.steps import check_two_processes, distance, draw_photos, small, step

NETWORKS = (
    "unet_lite0", "unet_resnet34_512", "unetplusplus_resnet34_512", "linknet34_1280x1920", "ternausnet_1280x1920",
    "unet_convnext_1024", "unet_effnetv2_1280x1920", "vanilla_unet",
)  # fmt: skip
# Of the loss, and of the gradient relative to its norm: on a CPU at most 0.00003 and 0.09, 0.0002 and 0.18.
TOLERANCES = {"fp16": (0.001, 0.15), "bf16": (0.005, 0.3)}


def photos_for(learner: Learner) -> list[torch.Tensor]:
    data = learner.config.data
    return send(draw_photos(learner.config.train.batch_size, data.crop or data.size), learner)


def first_step(learner: Learner) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the first step that fp16's scaler lets pass."""
    learner.model.train()
    batch = photos_for(learner)
    for _ in range(20):
        loss, gradient, taken = step(learner, *batch)
        if taken:
            return loss, gradient
    raise AssertionError("no step in 20 was finite")


@pytest.mark.parametrize("architecture", MODELS)
def test_a_step_in_half_precision_is_that_of_float32(architecture):
    emulated = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)  # bf16, not to be relied on
    tolerances = {name: TOLERANCES[name] for name in TOLERANCES if not (emulated and name == "bf16")}
    steps = {}
    for precision in ("fp32", *tolerances):
        config = small(architecture, precision=precision, micro_batch=None)
        steps[precision] = first_step(build_learner(config, pretrained=False))
        AcceleratorState._reset_state(reset_partial_state=True)
    loss, gradient = steps["fp32"]
    for precision, (loss_tolerance, gradient_tolerance) in tolerances.items():
        assert steps[precision][0] == pytest.approx(loss, rel=loss_tolerance)
        assert distance(steps[precision][1], gradient) < gradient_tolerance


def test_an_overflow_is_skipped_and_lowers_the_scale():
    learner = build_learner(small("unet", precision="fp16"), pretrained=False)
    loss, scaler = learner.loss, learner.accelerator.scaler
    before, scale = [p.clone() for p in learner.model.parameters()], scaler.get_scale()
    learner.loss = lambda logits, masks: loss(logits, masks) * 1e38
    assert not step(learner, *photos_for(learner))[2]
    assert all(map(torch.equal, learner.model.parameters(), before))
    assert scaler.get_scale() < scale
    learner.loss = loss
    first_step(learner)
    assert not all(map(torch.equal, learner.model.parameters(), before))


def test_a_real_lack_of_memory_halves_the_micro_batch(device):
    config = load_experiment("unet_resnet34_512", EXPERIMENTS).changed(train={"batch_size": 8})
    learner = build_learner(config, pretrained=False)
    first_step(learner)  # AdamW's moments are there

    def reserved(micro_batch: int) -> int:
        learner.position.micro_batch = micro_batch
        step(learner, *photos_for(learner))  # cuDNN's choice of algorithms takes memory of its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step(learner, *photos_for(learner))
        return torch.cuda.max_memory_reserved()

    between = (reserved(4) + reserved(8)) / 2
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(between / torch.cuda.get_device_properties(device.device).total_memory)
    try:
        loss, _, _ = step(learner, *photos_for(learner))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert learner.position.micro_batch == 4
    assert math.isfinite(loss)


@pytest.mark.parametrize("name", NETWORKS)
def test_computed_memory_is_what_a_step_takes(name, device):
    config = load_experiment(name, EXPERIMENTS).changed(train={"memory_format": "channels_last"}, earlier_stages=())
    learner = build_learner(config, pretrained=False)
    first_step(learner)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    first_step(learner)
    computed = Footprint(config).configured_bytes(device.precision)
    assert torch.cuda.max_memory_allocated() == pytest.approx(computed, rel=0.15)


def test_masks_are_those_of_the_cpu(device):
    """By a network that has learnt what is bright: an untrained one is in doubt of nearly each pixel."""
    learner = build_learner(small("unet", micro_batch=None), pretrained=False)
    learner.model.train()
    batch = photos_for(learner)
    for _ in range(60):
        step(learner, *batch)
    (photo,), (truth,) = draw_photos(1, (1280, 1918))
    masks = []
    for where in (Device(torch.device("cpu")), device):
        model = build_model(learner.config.model, pretrained=False)
        model.load_state_dict(learner.model.state_dict())
        network = TTA(prepare_model(model, where), ["identity", "hflip"])
        predictor = Predictor([[Member(Fit((640, 960)), network)]], where, Loading())
        masks.append(cut(predictor.predict_image(photo.permute(1, 2, 0).numpy()), 0.5).cpu())
    assert dice(masks[0], truth[0] > 0) > 0.98
    assert dice(*masks) > 0.9998


def test_runs_found_on_the_device_are_the_cpus(device):
    ellipse, noise, corners = draw_photos(1, (1280, 1918))[1][0, 0] > 0, torch.rand(1280, 1918) > 0.5, torch.eye(9) > 0
    for mask in (ellipse, ~ellipse, noise, corners, corners[1:], torch.zeros(5, 7) > 0, torch.ones(5, 7) > 0):
        assert encode_tensor(mask.to(device.device)) == rle_encode(mask.numpy())


def test_two_processes_take_the_step_of_one(tmp_path):
    check_two_processes(tmp_path)
