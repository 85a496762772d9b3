"""The camera, the studio's light, and painting: faces from far to near at twice the photo's size.

Photo and mask come from one painting, so the mask is exact; shadow and reflection are not in it.
"""

import cv2
import numpy as np

from demo.car import Car, outline

LETTERS = {  # on the wall, strokes of x and y as digits: what is dark behind a roof confuses networks
    "D": "00 09 39 58 66 63 51 30 00", "E": "50 00 05 45 05 09 59", "M": "00 09 43 89 80", " ": "20",
    "O": "20 11 03 06 18 29 49 58 66 63 51 40 20", "C": "51 40 20 11 03 06 18 29 49 58",
    "A": "00 39 60 53 13", "R": "00 09 39 48 56 44 04 34 60", "S": "01 10 40 51 53 44 15 06 08 19 49 58",
}  # fmt: skip


class Camera:
    def __init__(self, size: tuple[int, int], position: np.ndarray, target: np.ndarray, focal: float):
        ahead = (target - position) / np.linalg.norm(target - position)
        right = np.cross(ahead, (0, 0, 1)) / np.linalg.norm(np.cross(ahead, (0, 0, 1)))
        self.size, self.position, self.focal = size, position, focal
        self.axes = np.stack([right, np.cross(ahead, right), ahead], 1)  # right, down, ahead

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (.., 2) as x and y, and depths in metres."""
        places = (points - self.position) @ self.axes
        return self.focal * places[..., :2] / places[..., 2:] + np.array(self.size[::-1]) / 2, places[..., 2]


def shade(corners: np.ndarray, colour: np.ndarray, camera: Camera, light: np.ndarray) -> np.ndarray:
    """Colours uint8 (n, 4), the fourth 255: what each face scatters and what it mirrors of the studio."""
    centre, normal = corners.mean(1), np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    view = camera.position - centre
    normal, view = (a / (np.linalg.norm(a, axis=1, keepdims=True) + 1e-9) for a in (normal, view))
    facing = (normal * view).sum(1)
    mirrored = 2 * facing[:, None] * normal - view
    floor_wall_lamps = (-0.5, 0, 0.06, 0.12, 0.7, 0.78, 0.84), (0.22, 0.42, 0.50, 0.95, 0.95, 0.8, 2.2)
    room = np.interp(mirrored[:, 2], *floor_wall_lamps)
    room *= 1 - 0.4 * np.interp(mirrored[:, 0], (0.2, 0.9), (0, 1)) * (mirrored[:, 2] < 0.7)  # the open side is dim
    share = np.where(colour[:, 3] > 0, colour[:, 3] + 0.6 * (1 - np.clip(facing, 0, 1)) ** 5, 0).clip(0, 1)
    falling = 0.43 + 0.18 * normal[:, 2] + 0.55 * np.clip(normal @ light, 0, 1)
    falling *= np.interp(centre[:, 2], (0, 0.6), (0.55, 1))  # less light comes to what is low
    linear = colour[:, :3] * (falling * (1 - share))[:, None] + (share * room)[:, None]
    return np.insert(255 * np.clip(linear, 0, 1) ** (1 / 2.2), 3, 255, axis=1).astype(np.uint8)


def paint(pixels: np.ndarray, order: np.ndarray, colour: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The faces painted one over the other, uint8 (height, width, 4); the fourth is 255 where a face is."""
    numbers, pixels = np.zeros(size, np.int32), np.round(pixels * 16).astype(np.int32)
    for k in order.tolist():
        cv2.fillConvexPoly(numbers, pixels[k], k + 1, cv2.LINE_8, 4)
    return np.insert(colour, 0, 0, axis=0).view(np.uint32).ravel()[numbers].view(np.uint8).reshape(*size, 4)


def draw_line(room: np.ndarray, pixels: np.ndarray, grey: float, width: int) -> None:
    points = np.round(pixels * 16).astype(np.int32)
    cv2.polylines(room, [points], False, (grey,) * 3, max(1, width), cv2.LINE_AA, 4)


def draw_studio(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """The empty studio, float32 (height, width, 3): wall with its letters, the wall's curved foot, turntable."""
    height, width = camera.size
    y, x = np.mgrid[:height, :width] / width - np.array([height, width])[:, None, None] / width / 2
    down = y - 0.10 * x**2 - rng.uniform(-0.01, 0.01)
    steps = (-0.35, -0.070, -0.066, 0.00, 0.05, 0.33)
    colours = ((232, 234, 236), (246, 246, 247), (200, 207, 215), (188, 195, 203), (187, 190, 192), (172, 172, 167))
    room = np.stack([np.interp(down, steps, channel) for channel in zip(*colours, strict=True)], -1).astype(np.float32)
    room *= (1.03 - 0.25 * (x**2 + y**2))[..., None] * rng.normal(1, 0.004, 3)
    turn = np.linspace(0, 2 * np.pi, 361)
    draw_line(room, camera.project(np.stack([3 * np.cos(turn), 3 * np.sin(turn), 0 * turn], -1))[0], 148, width // 900)
    left = -0.44
    for letter in "DEMO CARS":
        stroke = np.array([[int(a), int(b)] for a, b in LETTERS[letter].split()]) * (0.0125, -0.0135) + (left, -0.10)
        stroke[:, 1] += 0.10 * stroke[:, 0] ** 2
        draw_line(room, stroke * width + (width / 2, height / 2), 64, width // 55)
        left = stroke[:, 0].max() + 0.035
    return room


def draw_photo(car: Car, camera: Camera, room: np.ndarray, turn: float, light: np.ndarray) -> tuple:
    """A photo float32 (height, width, 3) and its mask uint8 (height, width), with the car turned by `turn` radians."""
    photo, layer = draw_layers(car, camera, room, turn, light)
    return photo * (1 - layer[..., 3:] / np.float32(255)) + layer[..., :3], (layer[..., 3] >= 128).astype(np.uint8)


def draw_layers(
    car: Car, camera: Camera, room: np.ndarray, turn: float, light: np.ndarray, fine: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """The room with shadow and reflection, float32 (height, width, 3), and the car over it, uint8 (height, width, 4).

    The car's colours are multiplied by its alpha, the fourth, which has `fine` x `fine` steps.
    """
    (height, width), small = camera.size, (camera.size[0] // 4, camera.size[1] // 4)
    rotation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    corners = car.corners @ rotation
    (pixels, depth), colour = camera.project(corners), shade(corners, car.colour, camera, light)
    beyond = (rotation @ camera.position)[1] * np.sign(car.home) < np.abs(car.home)  # a wheel on the far side
    order = np.lexsort((-depth.mean(1), car.layer - 8 * beyond))
    diagonal, crossing = pixels[:, 2] - pixels[:, 0], pixels[:, 3] - pixels[:, 1]
    facing = diagonal[:, 0] * crossing[:, 1] < diagonal[:, 1] * crossing[:, 0]
    order = order[facing[order]]

    x, y = outline(np.linspace(0, 3, 60))
    foot = np.stack([x * car.style.length / 2, y * car.style.width / 2, 0 * x], -1)
    foot, dark = np.concatenate([foot, foot[::-1] * (1, -1, 1)]) @ rotation, np.ones(small, np.float32)
    for scale, blur, strength in ((1.10, 0.40, 0.35), (0.97, 0.10, 0.55)):
        shape = [np.round(camera.project(foot * scale)[0] * 4).astype(np.int32)]
        shadow = cv2.fillPoly(np.zeros(small, np.float32), shape, strength, cv2.LINE_AA, 4)
        dark *= 1 - cv2.GaussianBlur(shadow, (0, 0), blur * camera.focal / 32)
    below = paint(camera.project(corners * (1, 1, -1))[0] / 4, order, colour, small).astype(np.float32) * 0.14
    below = cv2.GaussianBlur(below, (0, 0), width / 900)
    dark *= 1 - below[..., 3] / 255
    photo = room * cv2.resize(dark, (width, height))[..., None] + cv2.resize(below, (width, height))[..., :3]

    around = pixels.min((0, 1)).astype(int) - 2, pixels.max((0, 1)).astype(int) + 3
    (x0, y0), (x1, y1) = np.clip(around, 0, (width, height))
    drawn = paint(fine * (pixels - (x0, y0)) + (fine - 1) / 2, order, colour, (fine * (y1 - y0), fine * (x1 - x0)))
    layer = np.zeros((height, width, 4), np.uint8)
    layer[y0:y1, x0:x1] = cv2.resize(drawn, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return photo, layer
