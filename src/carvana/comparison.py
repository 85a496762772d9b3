"""Whether one experiment is better than another, or only luckier with its cars."""

from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest

from carvana.errors import InputError
from carvana.metrics import bootstrap_interval


@dataclass(frozen=True)
class Comparison:
    """The second's out-of-fold Dice less the first's, on the photos that both have."""

    gain: float  # mean over photos
    interval: list[float]  # 95 % of cars drawn anew
    cars: pd.Series  # mean gain of each car, worst first
    photos: int
    p_value: float  # two-sided sign test: cars that gain against cars that lose

    @property
    def gaining(self) -> int:
        return int((self.cars > 0).sum())

    @property
    def losing(self) -> int:
        return int((self.cars < 0).sum())

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference that these cars can show"
        return "better" if low > 0 else "worse"


def compare(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    """Pairs two out-of-fold tables by photo. Raises InputError if they share none."""
    both = first.merge(second, on=["image_id", "car"], suffixes=("_first", "_second"))
    if both.empty:
        raise InputError("the two experiments share no photo: evaluate them on the same cars")
    gains = both["dice_second"] - both["dice_first"]
    cars = gains.groupby(both["car"]).mean().sort_values()
    better, different = int((cars > 0).sum()), int((cars != 0).sum())
    p_value = binomtest(better, different).pvalue if different else 1.0
    interval = bootstrap_interval(gains.to_numpy(), both["car"])
    return Comparison(float(gains.mean()), interval, cars, len(both), float(p_value))
