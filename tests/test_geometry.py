import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana.errors import InputError
from carvana.geometry import WHOLE, Fit, Window, pad_to_multiple, reflect_indices, unpad, window_around

SIDES = st.integers(1, 40)


@given(length=SIDES, before=st.integers(0, 100), after=st.integers(0, 100))
def test_reflect_indices_are_numpys_reflect(length, before, after):
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    assert reflect_indices(length, before, after).tolist() == expected.tolist()


@given(height=SIDES, width=SIDES, multiple=st.sampled_from([1, 16, 32]), border=st.integers(0, 20))
def test_unpad_undoes_pad(height, width, multiple, border):
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    padded, padding = pad_to_multiple(images, multiple, border)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert min(padding.top, padding.bottom, padding.left, padding.right) >= border
    assert torch.equal(unpad(padded, padding), images)


def test_full_size_gets_one_pixel_on_the_left_and_on_the_right():
    padded, padding = pad_to_multiple(torch.zeros(1, 3, 1280, 1918), 32)
    assert padded.shape[-2:] == (1280, 1920)
    assert (padding.left, padding.right) == (1, 1)


def test_pad_fit_is_undone_exactly():
    rng = np.random.default_rng(0)
    mask = rng.random((30, 46)) < 0.5
    fit = Fit((32, 48), "pad")
    coverage = fit.mask(mask)
    assert coverage.shape == (32, 48)
    assert fit.image(np.dstack([mask] * 3).astype(np.uint8)).shape == (32, 48, 3)
    probs = torch.from_numpy(coverage)[None, None] / 255
    assert np.array_equal(fit.undo(probs, (30, 46))[0, 0].numpy() > 0.5, mask)


def test_pad_fit_refuses_a_larger_photo():
    with pytest.raises(InputError, match="a photo of 40x48 does not fit into 32x48"):
        Fit((32, 48), "pad").image(np.zeros((40, 48, 3), np.uint8))


def test_resized_mask_is_the_share_of_each_pixel_that_is_car():
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True
    coverage = Fit((4, 4)).mask(mask)
    assert coverage[0].tolist() == [255, 128, 0, 0]  # half of 255, rounded
    assert abs(coverage.mean() / 255 - mask.mean()) < 0.01


def test_a_mask_survives_shrinking_and_coming_back():
    rows, columns = np.mgrid[:256, :384]
    mask = ((rows - 120) / 70) ** 2 + ((columns - 200) / 130.4) ** 2 < 1
    fit = Fit((64, 96))
    back = fit.undo(torch.from_numpy(fit.mask(mask))[None, None] / 255, mask.shape)[0, 0].numpy() >= 0.5
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.995


def test_undo_is_centered_as_the_resize_is():
    """A symmetric mask stays symmetric: no shift of half a pixel."""
    mask = np.zeros((40, 60), bool)
    mask[10:30, 15:45] = True
    fit = Fit((16, 24))
    back = fit.undo(torch.from_numpy(fit.mask(mask))[None, None] / 255, mask.shape)[0, 0]
    assert torch.allclose(back, back.flip(0), atol=1e-2)
    assert torch.allclose(back, back.flip(1), atol=1e-2)


@pytest.mark.parametrize(("rows", "columns"), [((10, 20), (30, 60)), ((0, 5), (85, 90)), ((0, 60), (0, 9))])
def test_a_window_holds_the_mask_in_the_proportions_of_the_photo(rows, columns):
    mask = np.zeros((60, 90), bool)
    mask[slice(*rows), slice(*columns)] = True
    window = window_around(mask, margin=0.1)
    seen = mask[window.slices(mask.shape)]
    assert seen.sum() == mask.sum()
    assert seen.shape[0] / seen.shape[1] == pytest.approx(60 / 90, abs=0.1)
    assert min(window.top, window.left) >= 0
    assert max(window.top, window.left) + window.share <= 1 + 1e-9


def test_a_window_around_nothing_is_the_photo():
    assert window_around(np.zeros((6, 9), bool), 0.1) == WHOLE


def test_what_is_seen_through_a_window_comes_back_to_its_place():
    mask = np.zeros((120, 180), bool)
    mask[40:70, 50:101] = True
    fit = Fit((64, 96), boxes_from="coarse")
    fit = fit.through(window_around(mask, fit.margin))
    assert fit.least[0] > 64  # the photo must be so large that its window is not enlarged
    assert fit.image(np.dstack([mask] * 3).astype(np.uint8)).shape == (64, 96, 3)
    probs = fit.undo(torch.from_numpy(fit.mask(mask))[None, None] / 255, mask.shape)[0, 0]
    assert np.array_equal(probs.numpy() > 0.5, mask)
    assert probs[:20].max() == 0


@settings(max_examples=200)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_any_window_lies_in_any_photo(top, left, share, size):
    window = Window(top * (1 - share), left * (1 - share), share)
    assert np.zeros(size)[window.slices(size)].size > 0
    probs = Fit((8, 8), boxes_from="x").through(window).undo(torch.ones(1, 1, 8, 8), size)
    assert probs.shape == (1, 1, *size)
    assert probs.max() == pytest.approx(1)
