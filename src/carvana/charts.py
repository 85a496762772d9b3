"""Charts of a report as SVG: text stays text, and takes the colour of the page around it, light or dark."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, LINE = "#010203", "#040506"  # replaced by the page's colours
LINES = ("#2f81f7", "#e0823d", "#3fb950", "#bc6bd9", "#d4a72c")  # legible on white and on black
BAR, BAD, MISSED = LINES[0], "#e5534b", LINES[0]
LARGEST = 0.5  # of 1 - Dice in the histogram
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "carvana", "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": LINE,
    "grid.color": LINE, "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip


class Chart:
    """One figure of `size` inches; `svg` once the block has drawn it."""

    svg: Markup


@contextmanager
def drawing(told: str, size: tuple[float, float] = (5.2, 3.2), **options) -> Iterator[tuple[Axes, Chart]]:
    """Axes to draw on; when the block ends, `chart.svg` is an element that screen readers know as `told`."""
    chart = Chart()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(subplot_kw=options or None), chart
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()[text.getvalue().index("<svg") :]
    for color, role in ((INK, "var(--soft)"), (LINE, "var(--line)")):
        body = body.replace(color, role)
    label = Markup('<svg role="img" aria-label="{}"').format(told)
    chart.svg = Markup(body.replace("<svg", str(label), 1))


def by_angle(table: pd.DataFrame) -> Markup:
    """Mean error of each angle around a turntable; the front of the car is to the right at angle 1."""
    errors = 1 - table.groupby("angle")["dice"].mean()
    worst = int(errors.idxmax())
    told = f"Mean error, 1 - Dice, by angle: from {errors.min():.5f} to {errors.max():.5f} at angle {worst}"
    with drawing(told, (4.2, 4.2), projection="polar") as (axes, chart):
        around = 2 * np.pi * (errors.index.to_numpy() - 1) / 16
        axes.bar(around, errors, width=0.33, color=[BAD if angle == worst else BAR for angle in errors.index])
        axes.set_xticks(around, [f"{angle:02d}\n{error:.4f}" for angle, error in errors.items()])
        axes.set_yticklabels([])
        axes.grid(True)
    return chart.svg


def by_car(table: pd.DataFrame) -> Markup:
    """Cars from worst to best: mean, and from the worst to the best of its photos."""
    cars = table.groupby("car")["dice"].agg(["mean", "min", "max"]).sort_values("mean")
    told = f"Dice of {len(cars)} cars in order: {cars['mean'].iloc[0]:.5f} to {cars['mean'].iloc[-1]:.5f}"
    with drawing(told, (7.5, 3)) as (axes, chart):
        place = np.arange(len(cars))
        axes.vlines(place, cars["min"], cars["max"], color=LINE, linewidth=2)
        axes.plot(place, cars["mean"], "o", markersize=4, color=BAR)
        if len(cars) <= 60:
            axes.set_xticks(place, [car[:4] for car in cars.index], rotation=90, fontsize=7)
        axes.set_xlabel("car, worst first (first four letters of its id)" if len(cars) <= 60 else "cars, worst first")
        axes.set_ylabel("Dice")
        axes.grid(True, axis="y")
    return chart.svg


def against(table: pd.DataFrame, column: str, label: str) -> Markup:
    """Each car's mean Dice against its mean of a column; a dot has the colour of its car."""
    cars = table.groupby("car")[["dice", column, "red", "green", "blue"]].mean()
    related = cars["dice"].corr(cars[column], method="spearman") if len(cars) > 2 else float("nan")
    told = f"Dice of each car against {label}; rank correlation {related:.2f}"
    with drawing(told, (3.7, 3)) as (axes, chart):
        colours = cars[["red", "green", "blue"]].to_numpy() / 255
        axes.scatter(cars[column], cars["dice"], c=colours, edgecolors=INK, linewidths=0.6, s=28)
        axes.set_xlabel(label)
        axes.set_ylabel("Dice")
        axes.set_title(f"rank correlation {related:.2f}", fontsize=9)
        axes.grid(True)
    return chart.svg


def histogram(table: pd.DataFrame) -> Markup:
    """Photos by their error, 1 - Dice, on a logarithmic axis."""
    errors = (1 - table["dice"]).clip(1e-4, LARGEST)
    told = f"Photos by error: median {errors.median():.5f}, largest {1 - table['dice'].min():.5f}"
    with drawing(told) as (axes, chart):
        axes.hist(errors, bins=np.geomspace(errors.min() * 0.99, errors.max() * 1.01, 40), color=BAR)
        axes.axvline(errors.median(), color=BAD)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda error, _: f"{error:g}"))
        axes.xaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
        axes.xaxis.set_minor_formatter(axes.xaxis.get_major_formatter())
        axes.set_xlabel("1 - Dice; the line is the median")
        axes.set_ylabel("photos")
    return chart.svg


def distances(labels: Sequence[str], shares: np.ndarray) -> Markup:
    """Shares of the wrong pixels by their distance to the true contour."""
    told = "Wrong pixels by distance to the true contour: " + ", ".join(
        f"{label} pixels {share:.0%}" for label, share in zip(labels, shares, strict=True)
    )
    with drawing(told) as (axes, chart):
        bars = axes.bar(labels, shares, color=BAR)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], color=INK)
        axes.set_xlabel("pixels from the true contour")
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, 0))
    return chart.svg


def curves(told: str, lines: dict[str, tuple[Sequence, Sequence]], x: str, y: str, **limits) -> Markup:
    """Lines by name, each of (x values, y values)."""
    with drawing(told) as (axes, chart):
        for number, (name, (where, values)) in enumerate(lines.items()):
            axes.plot(
                where, values, label=name, color=LINES[number % len(LINES)], marker="." if len(where) < 40 else ""
            )
        axes.set(xlabel=x, ylabel=y, **limits)
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=x == "epoch"))
        axes.grid(True)
        if len(lines) > 1:
            axes.legend()
    return chart.svg
