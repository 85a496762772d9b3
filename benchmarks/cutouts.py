"""The rim of cut-outs before and after matting: `python benchmarks/cutouts.py`.

Ten drawn cars, of which the true alpha and colours are known, in each of three rooms. In a network's place, the true
contour is moved by a smooth random field, and its mask shrunk to the network's size and brought back. The rim is what
lies within three pixels of where the true alpha is neither 0 nor 1. "local colours" is what is used without pymatting.
"""

from collections import defaultdict
from typing import Annotated

import cv2
import library  # noqa: F401
import numpy as np
import typer
from machine import processor

from carvana import command
from carvana.data.geometry import Fit
from carvana.prediction import matting
from demo.car import PAINTS, STYLES, Car
from demo.studio import Camera, draw_layers, draw_studio

ON = np.array([[0, 0, 0], [255, 255, 255], [32, 192, 64]])  # colours on which cut-outs are compared
LIGHT = np.array([0.4, 0.4, 0.8]) / np.linalg.norm([0.4, 0.4, 0.8])


def draw_dusk(camera: Camera, _: np.random.Generator) -> np.ndarray:
    down = np.linspace(0, 1, camera.size[0])[:, None, None]
    return np.broadcast_to(down * (40, 50, 75) + (1 - down) * (75, 70, 60), (*camera.size, 3)).astype(np.float32)


def draw_leaves(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    grains = [cv2.resize(rng.normal(size=(side, side * 3 // 2, 3)), camera.size[::-1]) for side in (16, 64, 214)]
    return ((70, 105, 55) + 12 * sum(grains)).clip(0, 255).astype(np.float32)


ROOMS = {"studio": draw_studio, "dusk": draw_dusk, "leaves": draw_leaves}


def draw(number: int, room: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A photo, uint8 (h, w, 3), and its car: colours times alpha, and alpha, uint8 (h, w, 4)."""
    rng = np.random.default_rng(number)
    camera = Camera(size, np.array([8.2, 0, 1.75]), np.array([0, 0, 0.95]), 1.355 * size[1])
    car = Car(STYLES[number % len(STYLES)], tuple(PAINTS.values())[number % len(PAINTS)], rng)
    behind, layer = draw_layers(car, camera, ROOMS[room](camera, rng), number * np.pi / 5 + 0.3, LIGHT, fine=4)
    photo = behind * (1 - layer[..., 3:] / np.float32(255)) + layer[..., :3] + rng.normal(0, 2, behind.shape)
    _, jpeg = cv2.imencode(".jpg", photo.clip(0, 255).astype(np.uint8), (cv2.IMWRITE_JPEG_QUALITY, 93))
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR), layer


def imagine_mask(alpha: np.ndarray, fit: Fit, off: float, rng: np.random.Generator) -> np.ndarray:
    """The mask, bool (h, w), of a network of that size whose contour is off by so many pixels in the mean."""
    field = cv2.resize(rng.normal(size=(22, 32)), alpha.shape[::-1], interpolation=cv2.INTER_CUBIC)
    inside, outside = (cv2.distanceTransform(np.uint8(side), cv2.DIST_L2, 5) for side in (alpha >= 128, alpha < 128))
    moved = inside - outside > off * field / np.abs(field).mean()
    return cv2.resize(fit.mask(moved), alpha.shape[::-1]) >= 128


def main(
    cars: Annotated[int, typer.Option(min=1, help="Drawn cars.")] = 10, size: command.SizeOption = "1280x1918",
    network: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the network.")] = "768x1152",
    off: Annotated[float, typer.Option(min=0, help="Pixels by which its contour is off, in the mean.")] = 1.2,
) -> None:  # fmt: skip
    errors, fit = defaultdict(list), Fit(command.parse_size(network))
    for room in ROOMS:
        for number in range(cars):
            photo, layer = draw(number, room, command.parse_size(size))
            mask = imagine_mask(layer[..., 3], fit, off, np.random.default_rng(number))
            pixel = np.sqrt(mask.size / np.prod(fit.size))
            cuts = {"before": (mask * np.uint8(255), photo), matting.method(): matting.refine(photo, mask, pixel)}
            rim = cv2.dilate(cv2.inRange(layer[..., 3], 1, 254), np.ones((7, 7), np.uint8)) > 0
            for name, (alpha, colors) in cuts.items():
                errors[room, name].append(measure(alpha[rim] / 255, colors[rim], layer[rim]))
    print(f"{processor()}; {cars} cars of {size}, network {network}, contour off by {off:g}; errors on the rim")
    for (room, name), each in errors.items():
        alpha, color = np.mean(each, axis=0)
        print(f"{room:8}{name:22}alpha {alpha:.4f}  colour {color:6.2f} of 255")


def measure(alpha: np.ndarray, colors: np.ndarray, layer: np.ndarray) -> tuple[float, float]:
    """Mean absolute errors of alpha (n,), and of the car's colours (n, 3) laid over each of ON."""
    true = layer[:, 3] / 255
    laid = [alpha[:, None] * colors + (1 - alpha[:, None]) * on - layer[:, :3] - (1 - true[:, None]) * on for on in ON]
    return np.abs(alpha - true).mean(), np.abs(laid).mean()


if __name__ == "__main__":
    command.run(main)
