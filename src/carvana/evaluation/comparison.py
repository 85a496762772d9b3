"""Whether one experiment is better than another, or only luckier with its cars."""

from typing import NamedTuple

import pandas as pd
from scipy.stats import binomtest

from carvana.errors import InputError
from carvana.evaluation.metrics import BEYOND, bootstrap_interval, estimate_mean
from carvana.evaluation.summary import error_line

EXTREMES = 3  # cars shown at either end


class Comparison(NamedTuple):
    """The second's out-of-fold Dice less the first's, on the photos that both have."""

    gain: float  # mean over photos
    interval: list[float]  # 95 % of cars drawn anew
    cars: pd.Series  # mean gain of each car, worst first
    photos: int
    gaining: int  # cars
    losing: int
    p_value: float  # two-sided sign test: cars that gain against cars that lose
    errors: dict[str, dict]  # of each of BEYOND the mean difference and its interval

    @property
    def verdict(self) -> str:
        low, high = self.interval
        inside = low <= 0 <= high or len(self.cars) < 2
        return "no difference that these cars can show" if inside else "better" if low > 0 else "worse"


def compare(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    """Pairs two out-of-fold tables by photo. Raises InputError if they share none."""
    both = first.merge(second, on=["image_id", "car"], suffixes=("_first", "_second"))
    if both.empty:
        raise InputError("the two experiments share no photo: evaluate them on the same cars")
    gains, differences = both["dice_second"] - both["dice_first"], {}
    for name in BEYOND:
        difference = both[f"{name}_second"] - both[f"{name}_first"]
        differences[name] = estimate_mean(difference, both["car"])
    cars = gains.groupby(both["car"]).mean().sort_values()
    gaining, losing = int((cars > 0).sum()), int((cars < 0).sum())
    p_value = float(binomtest(gaining, gaining + losing).pvalue) if gaining + losing else 1.0
    interval = bootstrap_interval(gains.to_numpy(), both["car"])
    return Comparison(float(gains.mean()), interval, cars, len(both), gaining, losing, p_value, differences)


def comparison_lines(first: dict, second: dict, comparison: Comparison) -> list[str]:
    """What a comparison shows, in words. `first` and `second` are the experiments' summaries, as in oof.json."""
    before, after, cars = first["experiment"], second["experiment"], comparison.cars
    low, high = comparison.interval
    headlines = [
        f"{oof['experiment']}: {oof['dice']:.5f} of {oof['photos']} photos, views {' + '.join(oof['tta'])}"
        for oof in (first, second)
    ]
    shown = min(EXTREMES, len(cars) // 2)
    return [
        *headlines,
        f"{after} less {before}, on {comparison.photos} photos of {len(cars)} cars: {comparison.gain:+.5f}",
        f"  95 % of cars drawn anew: {low:+.5f} to {high:+.5f}",
        *(error_line(name, **difference, form="+.5f") for name, difference in comparison.errors.items()),
        f"  {comparison.gaining} cars gain, {comparison.losing} lose; sign test p = {comparison.p_value:.3g}",
        *[f"  {car} {gain:+.5f}" for car, gain in [*cars.head(shown).items(), *cars.tail(shown).items()]],
        f"{after} against {before}: {comparison.verdict}",
    ]
