"""Every experiment that ships builds and runs, and its comment says what it needs."""

import re

import pytest
import torch

from carvana.augmentations import build_augmentation
from carvana.command import EXPERIMENTS
from carvana.experiment import load_experiment
from carvana.footprint import GIB, OVERHEAD, T4, Footprint
from carvana.models import build_model

SHIPPED = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
FOR_A_CPU = {"finder_lite0", "unet_lite0_boxes", "demo", "unet_lite0", "vanilla_unet"}
FIGURE = re.compile(r"^# Fits a T4 \(([\d.]+) GiB\): one step takes ([\d.]+) GiB in fp16", re.MULTILINE)


@pytest.mark.parametrize("experiment", SHIPPED)
def test_it_gives_logits_of_any_photo(experiment):
    config = load_experiment(experiment, EXPERIMENTS)
    model = build_model(config.model, pretrained=False).eval()
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 70, 100, dtype=torch.uint8))
    assert logits.shape == (1, 1, 70, 100)
    for stage in config.stages:
        build_augmentation(stage.data.augmentation)


@pytest.mark.parametrize("experiment", sorted(set(SHIPPED) - FOR_A_CPU))
def test_it_fits_a_t4_as_its_comment_says(experiment):
    config = load_experiment(experiment, EXPERIMENTS)
    needed = max(Footprint(stage).configured_bytes("fp16") for stage in config.stages) + OVERHEAD
    found = FIGURE.search((EXPERIMENTS / f"{experiment}.yaml").read_text())
    assert found, "no comment with the figure"
    card, said = map(float, found.groups())
    assert card == T4 / GIB
    assert said == pytest.approx(needed / GIB, rel=0.05)
    assert needed < 0.85 * T4
