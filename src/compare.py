"""Is B better than A, or is it noise? `python src/compare.py unet_lite0 unet_lite0_640`"""

from typing import Annotated

import typer

from carvana.command import RUNS, RunsOption, run
from carvana.comparison import compare
from carvana.oof import read_oof

SHOWN = 3  # cars at either end


def main(
    first: Annotated[str, typer.Argument(metavar="A", help="An evaluated experiment, as under runs/.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, on the same cars.")],
    runs: RunsOption = RUNS,
) -> None:
    (told, one), (other_told, other) = (read_oof(runs / name) for name in (first, second))
    found = compare(one.table, other.table)
    low, high = found.interval
    print(f"{first}: {told['dice']:.5f} of {told['photos']} photos, views {' + '.join(told['tta'])}")
    print(f"{second}: {other_told['dice']:.5f} of {other_told['photos']} photos, views {' + '.join(other_told['tta'])}")
    print(f"{second} less {first}, on {found.photos} photos of {len(found.cars)} cars: {found.gain:+.5f}")
    print(f"  95 % of cars drawn anew: {low:+.5f} to {high:+.5f}")
    print(f"  {found.gaining} cars gain, {found.losing} lose; sign test p = {found.p_value:.3g}")
    shown = min(SHOWN, len(found.cars) // 2)
    for car, gain in [*found.cars.head(shown).items(), *found.cars.tail(shown).items()]:
        print(f"  {car} {gain:+.5f}")
    print(f"{second} against {first}: {found.verdict}")


if __name__ == "__main__":
    run(main)
