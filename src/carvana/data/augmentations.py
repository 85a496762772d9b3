"""Augmentations by name. Each takes image (h, w, 3) uint8 and mask (h, w) uint8 coverage, and moves both alike.

Light is the default. The camera is fixed and the car stands on a turntable: test photos differ by car, not by pose,
and a study of this competition lost 0.0045 of Dice to heavy rotation. `src/draw.py augmentations` draws the sets.
"""

import random

import albumentations as A
import cv2
import numpy as np

from carvana.errors import InputError


def light() -> list:
    return [
        A.HorizontalFlip(p=0.5),
        _affine(scale=(0.9, 1.1), shift=0.04, degrees=3, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
        A.HueSaturationValue(hue_shift_limit=15, sat_shift_limit=25, val_shift_limit=10, p=0.3),
        A.ToGray(p=0.1),
    ]


def medium() -> list:
    """`light` in larger ranges, with shade, and blur, noise or JPEG artefacts in a quarter of the photos."""
    blur, noise = A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.01, 0.03), per_channel=False)
    return [
        A.HorizontalFlip(p=0.5),
        _affine(scale=(0.85, 1.15), shift=0.06, degrees=8, p=0.7),
        A.ColorJitter(brightness=(0.8, 1.15), contrast=(0.8, 1.2), saturation=(0.5, 1.5), hue=(-0.1, 0.1), p=0.6),
        A.ToGray(p=0.1),
        Shade(p=0.2),
        A.OneOf([blur, noise, A.ImageCompression(quality_range=(40, 90))], p=0.25),
    ]


def winner() -> list:
    """What the competition's winners had between them: shift, scale, 10 degrees, hues, and cars turned gray."""
    return [
        A.HorizontalFlip(p=0.5),
        _affine(scale=(0.91, 1.21), shift=0.0625, degrees=10, p=0.5, keep_ratio=True),
        A.HueSaturationValue(hue_shift_limit=50, sat_shift_limit=5, val_shift_limit=15, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.3),
        GrayCar(p=0.1),
    ]


class Shade(A.ImageOnlyTransform):
    """Uneven light: corners, sides and middle are darkened softly, each by up to 40 %."""

    def get_params(self) -> dict:
        return {"corners": self.random_generator.uniform(0.6, 1, (3, 3)).astype(np.float32)}

    def apply(self, img: np.ndarray, corners: np.ndarray, **params) -> np.ndarray:
        shade = cv2.resize(corners, (img.shape[1], img.shape[0]), interpolation=cv2.INTER_LINEAR)
        return cv2.blendLinear(img, np.zeros_like(img), shade, 1 - shade)


class GrayCar(A.ImageOnlyTransform):
    """Turns the car gray; the studio keeps its colours."""

    targets_as_params = ("mask",)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        return {"coverage": data["mask"].reshape(*data["mask"].shape[:2], -1)[..., 0]}

    def apply(self, img: np.ndarray, coverage: np.ndarray, **params) -> np.ndarray:
        gray = cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = coverage.astype(np.float32) / 255
        return cv2.blendLinear(gray, img, share, 1 - share)


def _affine(scale: tuple[float, float], shift: float, degrees: float, **options) -> A.Affine:
    options |= {"scale": scale, "translate_percent": (-shift, shift), "rotate": (-degrees, degrees)}
    linear = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_LINEAR}  # coverage stays coverage
    return A.Affine(**options, **linear, border_mode=cv2.BORDER_REFLECT_101)


hflip = lambda: [A.HorizontalFlip(p=0.5)]
AUGMENTATIONS = {"none": lambda: [], "hflip": hflip, "light": light, "medium": medium, "winner": winner}


def build_augmentation(name: str) -> A.Compose:
    """The named set. Raises InputError if there is none of that name."""
    if name not in AUGMENTATIONS:
        raise InputError(f"data.augmentation={name}: choose from {', '.join(AUGMENTATIONS)}")
    return A.Compose(AUGMENTATIONS[name]())


def augment(augmentation: A.Compose, image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> tuple:
    """Image and mask after an augmentation that `generator` alone decides, in any process and after any other draws."""
    # All transforms share it: `set_random_seed` would give each the same, and only flipped photos would be gray.
    augmentation.set_random_state(generator, random.Random(int(generator.integers(2**32))))
    result = augmentation(image=image, mask=mask)
    return result["image"], result["mask"]
