"""Photos come out in order, each decoded once; members are weighed at photo size; runs are those of the maps."""

import math
from functools import partial
from unittest.mock import patch

import pytest
import torch
from varied_runs import CPU, write_run

from carvana.data import images
from carvana.data.geometry import Fit
from carvana.data.images import open_test
from carvana.data.loader import Loading
from carvana.data.rle import rle_encode
from carvana.errors import InputError
from carvana.evaluation.trained import find_checkpoints
from carvana.models.checkpoint import load_checkpoint
from carvana.prediction.postprocess import PostProcess
from carvana.prediction.predictor import Member, Predictor, fold_members
from carvana.prediction.tta import TTA

SMALL, WIDE, PADDED = Fit((32, 48)), Fit((32, 64)), Fit((96, 160), "pad")
BRIGHTNESS = lambda images: images.float().mean(1, keepdim=True) / 255
DARKNESS = lambda images: 1 - BRIGHTNESS(images)
MEMBERS = [Member(SMALL, BRIGHTNESS, 2.0), Member(WIDE, BRIGHTNESS), Member(SMALL, DARKNESS), Member(PADDED, DARKNESS)]


@pytest.fixture(scope="module")
def photos(demo):
    return open_test(demo / "input")


def predictor(*mixes: list[Member], batch_size: int = 4, num_workers: int = 0) -> Predictor:
    return Predictor(mixes, CPU, Loading(batch_size, num_workers))


def test_members_of_any_fit_are_weighed_at_photo_size(photos):
    alone = predictor(*[[member] for member in MEMBERS]).predict(photos, photos.image_ids)
    for prediction, each in zip(predictor(MEMBERS).predict(photos, photos.image_ids), alone, strict=True):
        expected = sum(weight * maps[0] for weight, maps in zip((0.4, 0.2, 0.2, 0.2), each.maps, strict=True))
        torch.testing.assert_close(prediction.probs, expected)


@pytest.mark.parametrize("postprocess", [PostProcess(), PostProcess(parts=400)])
def test_runs_are_those_of_the_maps_and_each_photo_is_decoded_once(photos, postprocess):
    predictions = list(predictor(MEMBERS[:3]).predict(photos, photos.image_ids))
    three = predictor(MEMBERS[:3], batch_size=3, num_workers=1)
    with patch.object(images, "decode_image", wraps=images.decode_image) as decode:
        encoded = list(three.encode(photos, photos.image_ids, 0.5, postprocess))
    assert decode.call_count == len(photos.image_ids) == 16
    assert [row.image_id for row in encoded] == [each.image_id for each in predictions] == photos.image_ids
    for row, prediction in zip(encoded, predictions, strict=True):
        assert row.size == prediction.probs.shape == (96, 144)
        assert row.rle == rle_encode(postprocess((prediction.probs >= 0.5).numpy()))


def test_a_batch_too_large_for_the_memory_is_predicted_photo_by_photo(photos, capsys):
    def small_memory(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return BRIGHTNESS(images)

    sizes, expected = [], predictor(MEMBERS[:2]).predict(photos, photos.image_ids)
    scarce = predictor([Member(SMALL, small_memory, 2.0), MEMBERS[1]]).predict(photos, photos.image_ids)
    for prediction, each in zip(scarce, expected, strict=True):
        assert torch.equal(prediction.probs, each.probs)
    assert sizes == [4] + 16 * [1]
    assert capsys.readouterr().err.count("out of memory with 4 photos at once: going on one by one") == 1


def test_a_photo_of_any_size_is_predicted_in_its_own_proportions(photos):
    """Here both fits show it at 64 x 96; each counts."""
    members = [Member(Fit((64, 96)), BRIGHTNESS, 3.0), Member(Fit((64, 96), "pad"), DARKNESS)]
    (prediction,) = predictor(members[:1]).predict(photos, photos.image_ids[:1])
    image, expected = photos.image(photos.image_ids[0]), 0.75 * prediction.probs + 0.25 * (1 - prediction.probs)
    assert torch.allclose(predictor(members).predict_image(image), expected, atol=1e-6)
    assert torch.allclose(predictor(members).predict_image(image.transpose(1, 0, 2)).T, expected, atol=0.02)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_ends_in_the_names_of_photo_and_checkpoint(photos, number):
    """Of the second network, for the second photo of a batch."""
    second = torch.arange(4).view(4, 1, 1, 1) == 1
    broken = lambda images: torch.where(second, number, BRIGHTNESS(images))
    members = [Member(SMALL, TTA(BRIGHTNESS)), Member(SMALL, TTA(broken), name="runs/x/fold1/best.safetensors")]
    words = f"{photos.image_ids[1]}: runs/x/fold1/best.safetensors gives numbers that are not finite: compute in fp32"
    for call in (Predictor.predict, partial(Predictor.encode, threshold=0.5)):
        with pytest.raises(InputError, match=words):
            list(call(predictor(members), photos, photos.image_ids))


def test_folds_share_the_weight_of_their_experiment(photos, tmp_path):
    write_run(tmp_path, "tiny", [32, 64], 3, photos)
    write_run(tmp_path, "tiny", [32, 48], 2, photos)  # replaces two of them
    folds = [load_checkpoint(path) for path in find_checkpoints(tmp_path, "tiny")]
    with pytest.raises(InputError, match=r"tiny: its folds were trained at different sizes; train them alike"):
        fold_members(folds, ["identity"], CPU)
    members = fold_members(folds[:2], ["identity"], CPU, weight=0.5)
    assert [(member.fit, member.weight) for member in members] == [(SMALL, 0.25), (SMALL, 0.25)]
