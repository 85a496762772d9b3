"""Charts of a report as SVG: text stays text, and takes the colour of the page around it, light or dark."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvana.evaluation.metrics import estimate_mean

INK, LINE = "#010203", "#040506"  # replaced by the page's colours
LINES = ("#2f81f7", "#e0823d", "#3fb950", "#bc6bd9", "#d4a72c")  # legible on white and on black
BAR, BAD = LINES[0], "#e5534b"
LARGEST = 0.5  # of 1 - Dice in the histogram
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "carvana", "font.family": "sans-serif", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": LINE,
    "grid.color": LINE, "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip
styled = matplotlib.rc_context(STYLE)  # decorates what makes axes or draws on them


def new_axes(width: float = 5.2, height: float = 3.2, **options) -> Axes:
    """Empty axes of a figure of `width` x `height` inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots(subplot_kw=options)


def to_svg(axes: Axes, label: str) -> Markup:
    """An element that screen readers know as `label`."""
    text = io.StringIO()
    axes.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()[text.getvalue().index("<svg") :].replace(INK, "var(--soft)").replace(LINE, "var(--line)")
    return Markup(body.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1))


@styled
def by_angle(table: pd.DataFrame) -> Markup:
    """Mean error of each angle around a turntable; the front of the car is to the right at angle 1."""
    errors = 1 - table.groupby("angle")["dice"].mean()
    worst = int(errors.idxmax())
    axes, around = new_axes(4.2, 4.2, projection="polar"), 2 * np.pi * (errors.index.to_numpy() - 1) / 16
    axes.bar(around, errors, width=0.33, color=[BAD if angle == worst else BAR for angle in errors.index])
    axes.set_xticks(around, [f"{angle:02d}\n{error:.4f}" for angle, error in errors.items()])
    axes.set_yticklabels([])
    axes.grid(True)
    return to_svg(axes, f"Mean error, 1 - Dice, by angle: {errors.min():.5f} to {errors.max():.5f} at angle {worst}")


@styled
def by_studio(table: pd.DataFrame) -> Markup:
    """Mean error of each studio, and the part beyond a pixel of the true contour, with intervals over its cars."""
    studios = list(table.groupby("studio", observed=True))
    axes, errors = new_axes(4.8, 1.2 + 0.32 * len(studios)), table.assign(error=1 - table["dice"])
    for column, label, color in (("error", "1 - Dice", BAR), ("beyond_1px", "beyond 1 px", LINES[1])):
        estimates = [estimate_mean(errors.loc[photos.index, column], photos["car"]) for _, photos in studios]
        axes.hlines(range(len(studios)), *zip(*(e["interval"] for e in estimates), strict=True), color=color)
        axes.plot([e["mean"] for e in estimates], range(len(studios)), "o", color=color, label=label)
    texts = [f"{name}, {photos['car'].nunique()} cars: {photos['dice'].mean():.5f}" for name, photos in studios]
    axes.set_yticks(range(len(studios)), texts)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.figure.legend(loc="outside lower right", ncols=2)
    return to_svg(axes, f"Dice by studio: {'; '.join(texts)}")


@styled
def by_car(table: pd.DataFrame) -> Markup:
    """Cars from worst to best: mean, and from the worst to the best of its photos."""
    cars = table.groupby("car")["dice"].agg(["mean", "min", "max"]).sort_values("mean")
    axes, place = new_axes(7.5, 3), np.arange(len(cars))
    axes.vlines(place, cars["min"], cars["max"], color=LINE, linewidth=2)
    axes.plot(place, cars["mean"], "o", markersize=4, color=BAR)
    axes.set(xlabel="cars, worst first", ylabel="Dice")
    if len(cars) <= 60:
        axes.set_xticks(place, [car[:4] for car in cars.index], rotation=90, fontsize=7)
    axes.grid(True, axis="y")
    return to_svg(axes, f"Dice of {len(cars)} cars: {cars['mean'].iloc[0]:.5f} to {cars['mean'].iloc[-1]:.5f}")


@styled
def against(table: pd.DataFrame, column: str, quantity: str) -> Markup:
    """Each car's mean Dice against its mean of a column; a dot has the colour of its car."""
    cars = table.groupby("car")[["dice", column, "red", "green", "blue"]].mean()
    correlation = cars["dice"].corr(cars[column], method="spearman") if len(cars) > 2 else float("nan")
    axes, colors = new_axes(3.7, 3), cars[["red", "green", "blue"]].to_numpy() / 255
    axes.scatter(cars[column], cars["dice"], c=colors, edgecolors=INK, linewidths=0.6, s=28)
    axes.set(xlabel=quantity, ylabel="Dice")
    axes.set_title(f"rank correlation {correlation:.2f}", fontsize=9)
    axes.grid(True)
    return to_svg(axes, f"Dice of each car against {quantity}; rank correlation {correlation:.2f}")


@styled
def histogram(table: pd.DataFrame) -> Markup:
    """Photos by their error, 1 - Dice, on a logarithmic axis."""
    axes, errors = new_axes(), (1 - table["dice"]).clip(1e-4, LARGEST)
    axes.hist(errors, bins=np.geomspace(errors.min() * 0.99, errors.max() * 1.01, 40), color=BAR)
    axes.axvline(errors.median(), color=BAD)
    axes.set(xscale="log", xlabel="1 - Dice; the line is the median", ylabel="photos")
    axes.xaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    return to_svg(axes, f"Photos by error: median {errors.median():.5f}, largest {1 - table['dice'].min():.5f}")


@styled
def distances(bands: Sequence[str], shares: np.ndarray) -> Markup:
    """Shares of the wrong pixels by their distance to the true contour."""
    axes, texts = new_axes(), [f"{share:.0%}" for share in shares]
    axes.bar_label(axes.bar(bands, shares, color=BAR), texts, color=INK)
    axes.set_xlabel("pixels from the true contour")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, 0))
    listed = ", ".join(f"{band} pixels {text}" for band, text in zip(bands, texts, strict=True))
    return to_svg(axes, f"Wrong pixels by distance to the true contour: {listed}")


@styled
def curves(label: str, lines: dict[str, tuple[Sequence, Sequence]], x: str, y: str) -> Markup:
    """Lines by name, each of (x values, y values)."""
    axes = new_axes()
    axes.set_prop_cycle(color=LINES)
    for name, (places, values) in lines.items():
        axes.plot(places, values, label=name, marker="." if len(places) < 40 else "")
    axes.set(xlabel=x, ylabel=y)
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=x == "epoch"))
    axes.grid(True)
    if len(lines) > 1:
        axes.legend()
    return to_svg(axes, label)
