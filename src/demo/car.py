"""Cars as some 90,000 small quadrilaterals: five bodies, made of lofted outlines, wheels and details."""

from collections import namedtuple
from functools import partial
from itertools import pairwise

import numpy as np

# fmt: off
# Metres: x from the middle of the car towards its nose, y to its left, z up from the floor. `cabin`: x of the
# windscreen's foot and top, the rear window's top and foot. `deck`: z of boot, belt and bonnet at DECK_X, in half
# lengths. `pillars` stand between the side windows, along the cabin from its front, 1, to -1.
Style = namedtuple("Style", "name length width sill roof curve wheel axles cabin pillars deck")
DECK_X = (-1, -0.93, -0.66, 0, 0.46, 0.84, 1)
STYLES = (
    Style("Sedan", 4.80, 1.86, 0.21, 1.46, 2.1, 0.335, (1.42, -1.40), (1.28, 0.30, -0.75, -1.85),
          (0.70, 0.13, -0.50, -0.68), (0.95, 1.07, 1.06, 0.99, 0.95, 0.83, 0.70)),
    Style("SUV", 4.75, 1.93, 0.28, 1.73, 2.6, 0.375, (1.42, -1.40), (1.18, 0.28, -1.90, -2.30),
          (0.76, 0.28, -0.30, -0.80), (1.02, 1.19, 1.18, 1.16, 1.15, 1.09, 0.95)),
    Style("Coupe", 4.50, 1.88, 0.18, 1.31, 2.0, 0.345, (1.36, -1.32), (1.05, 0.02, -0.60, -2.00),
          (0.66, -0.06, -0.50), (0.92, 1.02, 0.99, 0.92, 0.89, 0.77, 0.64)),
    Style("Pickup", 5.50, 1.98, 0.32, 1.85, 2.6, 0.395, (1.80, -1.72), (1.62, 0.90, -0.72, -0.86),
          (0.66, 0.04, -0.62, -0.84), (1.16, 1.19, 1.18, 1.17, 1.16, 1.11, 0.98)),
    Style("Hatchback", 4.10, 1.77, 0.20, 1.50, 2.3, 0.315, (1.28, -1.25), (1.30, 0.35, -1.45, -1.99),
          (0.70, 0.19, -0.40, -0.68), (0.92, 1.08, 1.05, 1.01, 0.97, 0.85, 0.72)),
)
PAINTS = {  # colour in linear light, and the share of light mirrored head-on
    "Silver": (0.34, 0.35, 0.36, 0.20), "Black": (0.005, 0.005, 0.006, 0.045), "Red": (0.38, 0.008, 0.012, 0.04),
    "White": (0.74, 0.74, 0.73, 0.05), "Blue": (0.015, 0.06, 0.27, 0.08), "Grey": (0.075, 0.08, 0.09, 0.12),
    "Navy": (0.012, 0.02, 0.055, 0.08), "Champagne": (0.34, 0.29, 0.21, 0.12), "Green": (0.015, 0.08, 0.05, 0.08),
}
MATERIALS = {  # likewise
    "glass": (0.006, 0.009, 0.010, 0.06), "rubber": (0.016, 0.016, 0.017, 0), "inside": (0.003, 0.003, 0.003, 0),
    "plastic": (0.02, 0.02, 0.022, 0.03), "rim": (0.50, 0.51, 0.53, 0.25), "chrome": (0.40, 0.41, 0.42, 0.5),
    "lamp": (0.55, 0.58, 0.60, 0.35), "tail": (0.40, 0.006, 0.01, 0.06), "brake": (0.10, 0.10, 0.10, 0.05),
    "plate": (0.72, 0.76, 0.82, 0.02), "ink": (0.03, 0.12, 0.30, 0.02),
}
DETAILS = (  # on the body: material, layer, from .. to along the outline, low, high
    ("plastic", 3, 0, 0.70, 0.05, 0.19), ("chrome", 3, 0, 0.61, 0.26, 0.56), ("inside", 3.1, 0, 0.58, 0.28, 0.54),
    ("brake", 3.2, 0, 0.58, 0.31, 0.325), ("brake", 3.2, 0, 0.58, 0.36, 0.375), ("brake", 3.2, 0, 0.58, 0.41, 0.425),
    ("brake", 3.2, 0, 0.58, 0.46, 0.475), ("plate", 3.4, 0, 0.31, 0.19, 0.32), ("ink", 3.5, 0, 0.31, 0.20, 0.22),
    ("ink", 3.5, 0.1, 0.2, 0.25, 0.29), ("inside", 3, 0.66, 1.05, 0.45, 0.68), ("lamp", 3.1, 0.67, 1.04, 0.47, 0.66),
    ("glass", 3.2, 0.70, 0.80, 0.51, 0.62), ("lamp", 3.3, 0.72, 0.78, 0.53, 0.60), ("lamp", 3.1, 0.83, 0.92, 0.1, 0.17),
    ("glass", 3.2, 0.83, 0.93, 0.51, 0.62), ("lamp", 3.3, 0.85, 0.91, 0.53, 0.60), ("chrome", 3.3, 0, 0.07, 0.39, 0.48),
    ("plastic", 3, 0.80, 0.95, 0.08, 0.19), ("plastic", 3, 2.05, 3, 0.00, 0.15), ("inside", 3, 2.18, 3, 0.33, 0.34),
    ("tail", 3, 1.97, 2.33, 0.44, 0.74), ("lamp", 3.1, 2.15, 2.33, 0.50, 0.60), ("inside", 3, 2.34, 2.35, 0.34, 0.90),
    ("plate", 3.4, 2.69, 3, 0.40, 0.54), ("ink", 3.5, 2.69, 3, 0.41, 0.43), ("ink", 3.5, 2.80, 2.90, 0.46, 0.50),
)
# fmt: on


def outline(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of half a rounded square: u is 0 to 1 across the nose, to 2 along the left, to 3 across the tail."""
    aside, x, y = (u >= 1) & (u <= 2), 0.84 * (3 - 2 * u), 0.93 * np.minimum(u, 3 - u)
    across = (1 - np.minimum(np.where(aside, x, y) ** 6, 1)) ** (1 / 6)
    return np.where(aside, x, np.sign(1.5 - u) * across), np.where(aside, across, y)


def along(x: float | np.ndarray) -> float | np.ndarray:
    """u of a place on the outline's left."""
    return (3 - x / 0.84) / 2


def deck_height(style: Style, x: np.ndarray) -> np.ndarray:
    return np.polyval(np.polyfit(DECK_X, style.deck, 5), 2 * x / style.length)


def body(style: Style, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Points (.., 3) of the lower body: v climbs its side from 0 to 1, then crosses the deck to its middle, 2."""
    wall, top, (x, y) = np.minimum(v, 1), np.maximum(v - 1, 0), outline(u)
    end, x = np.abs(x) ** 6, x * style.length / 2
    deck, bottom = deck_height(style, x), style.sill + 0.06 * end
    for axle in style.axles:
        arch = (1.14 * style.wheel) ** 2 - (x - axle) ** 2
        bottom = np.where(arch > 0, style.wheel + np.sqrt(np.maximum(arch, 0)), bottom)
    z = bottom + (deck - bottom) * (1 - (1 - wall) ** 1.7)
    level = 1 - np.clip((deck - z) / (deck - style.sill), 0, 1) ** (1 / 1.7)  # as `wall` where no arch cuts in
    inset = 0.07 * np.maximum(1 - level / 0.4, 0) ** 2 + 0.03 * np.maximum(level - 0.4, 0) + 0.07 * level**8
    inset = inset - 0.010 * np.exp(-(((level - 0.62) / 0.08) ** 2))  # a crease catches the light
    x, y = x - np.sign(x) * 1.2 * inset * end, y * (style.width / 2 - inset) * (1 - top)
    return np.stack([x, y, z + 0.05 * (1 - (1 - top) ** 2) * (1 - end)], -1)


def cabin(style: Style, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Points (.., 3) of the cabin: v climbs from the belt to the roof's edge at 1, then to the roof's middle, 2."""
    wall, top, (ex, ey) = np.minimum(v, 1), np.maximum(v - 1, 0), outline(u)
    front, front_top, rear_top, rear = style.cabin
    nose, tail = front + (front_top - front) * wall, rear + (rear_top - rear) * wall
    x = (nose + tail) / 2 + ex * (nose - tail) / 2
    foot, roof = deck_height(style, x) - 0.03, style.roof - 0.05 - 0.03 * ex**2
    z = foot + (roof - foot) * (1 - (1 - 0.93 * wall) ** style.curve) + 0.05 * (1 - (1 - top) ** 2) * (1 - ex**4)
    return np.stack([x, ey * style.width * (0.45 - 0.15 * wall) * (1 - top), z], -1)


def sheet(surface, start: float, stop: float, low: float, high: float, rows=10, columns=6) -> np.ndarray:
    return surface(np.linspace(start, stop, rows)[:, None], np.linspace(low, high, columns))


def ball(centre: np.ndarray, radii: tuple) -> np.ndarray:
    turn, tilt = np.linspace(0, 2 * np.pi, 33)[:, None], np.linspace(-np.pi / 2, np.pi / 2, 17)
    unit = np.stack([np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt) + 0 * turn], -1)
    return centre + np.sign(unit) * np.abs(unit) ** 0.6 * radii


class Car:
    """Quadrilaterals: `corners` (n, 4, 3), `colour` (n, 4) as in PAINTS, `layer` (n,), `home` (n,).

    Layers are painted in order: wheel wells, wheels, body, what lies on it, cabin, what lies on it, mirrors. `home` is
    y of the plane in which a wheel or mirror stands, else 0. With `detail` below 1 faces are fewer and larger.
    """

    def __init__(self, style: Style, paint: tuple, rng: np.random.Generator, detail: float = 1):
        self.style, self.parts, self.materials, self.detail = style, [], MATERIALS | {"paint": paint}, detail
        side = (1 - np.cos(np.linspace(0, np.pi, round(90 * detail)))) / 2  # finer at the corners
        self.around = np.unique([side, 1 + side, 2 + side])
        self.up = np.append(np.linspace(0, 1, round(44 * detail)), np.linspace(1.1, 2, 10))
        self.add_body()
        self.add_cabin(rng.uniform(0.06, 0.16))
        spokes = rng.integers(5, 11)
        for axle in style.axles:
            self.add_wheel(axle, 0.475 * style.width, spokes)
        self.corners, rows = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        self.colour, self.layer, self.home = rows[:, :4], rows[:, 4], rows[:, 5]

    def add(self, points: np.ndarray, material: str, layer: float, home: float = 0) -> None:
        """Adds a grid of points and its mirror image. Rows run towards the tail and columns up, seen from outside."""
        for side in (1, -1):
            p = (points * (1, side, 1))[::side]
            quads = np.stack([p[:-1, :-1], p[1:, :-1], p[1:, 1:], p[:-1, 1:]], 2).reshape(-1, 4, 3)
            self.parts.append((quads, np.tile((*self.materials[material], layer, side * home), (len(quads), 1))))

    def add_body(self) -> None:
        style, half, radius = self.style, self.style.length / 2, 1.14 * self.style.wheel
        surface, low = partial(body, style), np.arcsin((style.wheel - style.sill) / radius)
        turn = np.linspace(-low, np.pi + low, 41)
        x, z = radius * np.cos(np.clip(turn, 0, np.pi)), radius * np.sin(turn)
        u = np.union1d(self.around, [along((axle + x) / half) for axle in style.axles])
        self.add(surface(u[:, None], self.up), "paint", 2)
        for axle in style.axles:  # a well: its wall, then out to the arch
            wall = [np.stack([axle + x * r, 0 * x + 0.35 * style.width, style.wheel + z * r], -1) for r in (0, 1)]
            self.add(np.stack([*wall, surface(along((axle + x) / half), 0 * x)], 1), "inside", 0)
        for material, layer, *place in DETAILS:
            self.add(sheet(surface, *place), material, layer)

        def strip(material: str, start: float, stop: float, *heights: float) -> None:
            self.add(sheet(surface, along(start / half), along(stop / half), *heights, columns=24), material, 3)

        front, rear, pillars = style.cabin[0], style.cabin[3], style.pillars
        doors = [((1 + e) * front + (1 - e) * rear) / 2 for e in (pillars[0] + 0.06, *pillars[1:-1])]
        for x in doors:
            strip("inside", x + 0.005, x - 0.005, 0.1, 0.97)
        for x in doors[1:]:
            strip("chrome", x + 0.28, x + 0.08, 0.70, 0.735)
        strip("plastic", style.axles[0] - 1.01 * radius, style.axles[1] + 1.01 * radius, 0, 0.09)
        if style.name == "Pickup":  # the bed's cover
            strip("rubber", -0.92, -2.68, 1.08, 2)

    def add_cabin(self, mast: float) -> None:
        style, surface, pillars = self.style, partial(cabin, self.style), self.style.pillars

        def pane(material: str, layer: float, start: float, stop: float, *heights: float) -> None:
            cells = round(30 * self.detail)
            rise = [(1 - (1 - height) ** (1 / style.curve)) / 0.93 for height in heights]
            self.add(sheet(surface, start, stop, *rise, cells, cells), material, layer)

        self.add(surface(self.around[:, None], self.up), "paint", 4)
        pane("glass", 5, 0, 0.92, 0.03, 0.93)
        pane("glass", 5, 2.10, 3, 0.12, 0.88)
        pane("plastic", 5, along(pillars[0] + 0.02), along(pillars[-1] - 0.05), 0.08, 0.90)
        for start, stop in pairwise(pillars):
            pane("glass", 5.1, along(start - 0.02), along(stop + 0.02), 0.12, 0.86)
        x = style.cabin[0] - 0.42
        mirror = np.array([x, 0.47 * style.width + 0.07, deck_height(style, x) + 0.06])
        self.add(ball(mirror, (0.07, 0.13, 0.085)), "paint", 6, mirror[1])
        self.add(ball(np.array([style.cabin[2] + 0.1, 0, style.roof + mast - 0.06]), (0.005, 0.005, mast)), "inside", 7)

    def add_wheel(self, axle: float, y: float, spokes: int) -> None:
        def lathe(material: str, layer: float, angle: np.ndarray, *profile: tuple[float, float]) -> None:
            """`profile`: (share of the radius, depth behind the wheel's face) from the hub outwards."""
            share, depth = np.transpose(profile)
            x, z = axle + radius * share * np.cos(angle), radius * (1 + share * np.sin(angle))
            self.add(np.stack([x, y - depth + 0 * x, z], -1), material, layer, y)

        radius, around = self.style.wheel, np.linspace(0, 2 * np.pi, round(96 * self.detail))[:, None]
        tyre = ((0.6, 0.03), (0.71, 0.01), (0.76, 0), (0.93, 0.005), (0.98, 0.03), (1, 0.06), (1, 0.17), (0.95, 0.21))
        lathe("rubber", 1.1, around, *tyre, (0, 0.21))
        lathe("inside", 1.2, around, (0, 0.08), (0.68, 0.08), (0.68, 0.02))
        lathe("brake", 1.3, around, (0.15, 0.07), (0.46, 0.07))
        lathe("rim", 1.4, around, (0.63, 0.05), (0.66, 0.015), (0.70, 0.005), (0.72, 0.015))
        shares, widths = np.array([0.08, 0.3, 0.66]), np.array([0.06, 0.05, 0.075]) * 6 / spokes
        for turn in np.arange(spokes) * 2 * np.pi / spokes + 0.3:
            spoke = turn + np.array([[-1], [0], [1]]) * widths / shares
            lathe("rim", 1.5, spoke, *zip(shares, (0.02, 0.03, 0.015), strict=True))
        lathe("rim", 1.6, around, (0, 0.01), (0.15, 0.02))
