import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from carvana.config import DataConfig
from carvana.data.geometry import Fit, pad_to_multiple, shrink, unpad
from carvana.errors import InputError

SIDES = st.integers(1, 40)


@given(height=SIDES, width=SIDES, multiple=st.sampled_from([1, 16, 32]), border=st.integers(0, 100))
def test_unpad_undoes_pad_which_mirrors_as_numpy_does(height, width, multiple, border):
    images = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    padded, padding = pad_to_multiple(images, multiple, border)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert min(padding) >= border
    margins = ((0, 0), padding[:2], padding[2:])
    assert np.array_equal(padded, np.pad(images, margins, mode="reflect"))
    assert torch.equal(unpad(padded, padding), images)


def come_back(fit: Fit, mask: np.ndarray) -> np.ndarray:
    """The probabilities at photo size of a network that gives the mask's coverage."""
    coverage = fit.mask(mask)
    assert (coverage.shape, coverage.dtype) == (fit.size, np.uint8)
    return fit.undo(torch.from_numpy(coverage)[None, None] / 255, mask.shape)[0, 0].numpy()


def test_padding_is_undone_exactly():
    padded, padding = pad_to_multiple(torch.zeros(1, 1, 1280, 1918, dtype=torch.uint8), 32)
    assert (padded.shape[-2:], padding) == ((1280, 1920), (0, 0, 1, 1))
    mask, fit = np.random.default_rng(0).random((30, 46)) < 0.5, Fit.of(DataConfig(size=(32, 48), fit="pad"))
    assert (fit, fit.least, Fit((32, 48)).least) == (Fit((32, 48), "pad"), None, (32, 48))
    assert fit.image(np.dstack([mask] * 3).astype(np.uint8)).shape == (32, 48, 3)
    assert np.array_equal(come_back(fit, mask) > 0.5, mask)
    with pytest.raises(InputError, match="a photo of 40x48 does not fit into 32x48"):
        fit.image(np.zeros((40, 48, 3), np.uint8))


def test_a_mask_survives_shrinking_and_coming_back():
    assert Fit((4, 4)).mask(np.arange(8) < np.full((8, 1), 3))[0].tolist() == [255, 128, 0, 0]  # 255 times the coverage
    rows, columns = np.mgrid[:256, :384]
    ellipse = ((rows - 120) / 70) ** 2 + ((columns - 200) / 130.4) ** 2 < 1
    back = come_back(Fit((64, 96)), ellipse) >= 0.5
    assert 2 * (back & ellipse).sum() / (back.sum() + ellipse.sum()) > 0.995
    back = come_back(Fit((64, 96)), (abs(rows - 127.5) < 70) & (abs(columns - 191.5) < 100))
    for axis in (0, 1):
        np.testing.assert_allclose(back, np.flip(back, axis), atol=1e-2)  # not moved by half a pixel
    probs = torch.rand(2, 3, 20, 30)
    expected = F.interpolate(probs, (41, 59), mode="bilinear", align_corners=False)
    torch.testing.assert_close(Fit((20, 30)).undo(probs, (41, 59)), expected, atol=1e-4, rtol=0)


def test_photos_are_shrunk_as_by_area_and_a_fit_for_any_shape_keeps_its_proportions():
    rows, columns = np.mgrid[:128, :192].astype(np.uint8)
    by_area = np.dstack([shrink(channel, (48, 72)) for channel in (rows, columns, 200 - rows)]).astype(int)
    assert np.abs(shrink(np.dstack([rows, columns, 200 - rows]), (48, 72)) - by_area)[2:-2, 2:-2].max() <= 1
    for photo, size in {(1280, 1918): (512, 768), (900, 600): (768, 512), (100, 4000): (96, 3968)}.items():
        assert Fit((512, 768), "pad").like(photo) == Fit(size)
