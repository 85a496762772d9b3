import numpy as np
import pandas as pd
import pytest

from carvana.comparison import compare
from carvana.errors import InputError


def table(dice: np.ndarray) -> pd.DataFrame:
    """Photos of len(dice) cars, two each."""
    names = [(f"car{number:02d}_0{angle}", f"car{number:02d}") for number in range(len(dice)) for angle in (1, 2)]
    return pd.DataFrame(names, columns=["image_id", "car"]).assign(dice=np.repeat(dice, 2))


def test_the_same_small_gain_of_every_car_is_no_noise():
    dice = np.linspace(0.97, 0.99, 12)
    found = compare(table(dice), table(dice + 0.001))
    assert found.gain == pytest.approx(0.001)
    assert found.interval == pytest.approx([0.001, 0.001])
    assert (found.gaining, found.losing, found.photos) == (12, 0, 24)
    assert found.p_value == pytest.approx(2 * 0.5**12)
    assert found.verdict == "better"
    assert compare(table(dice + 0.001), table(dice)).verdict == "worse"


def test_one_lucky_car_is_noise():
    dice = np.full(12, 0.99)
    gain = np.full(12, -1e-4)
    gain[3] = 0.01
    found = compare(table(dice), table(dice + gain))
    assert found.gain > 0
    assert found.cars.index[-1] == "car03"
    assert (found.gaining, found.losing) == (1, 11)
    assert found.verdict == "no difference that these cars can show"


def test_equal_experiments_and_experiments_of_other_cars():
    dice = np.full(4, 0.99)
    assert compare(table(dice), table(dice)).p_value == 1
    only_second = table(dice).assign(image_id=lambda rows: "x" + rows["image_id"])
    with pytest.raises(InputError, match="share no photo"):
        compare(table(dice), only_second)


def test_photos_that_both_have_are_compared():
    found = compare(table(np.full(6, 0.9)), table(np.full(4, 0.95)))
    assert (found.photos, len(found.cars)) == (8, 4)
