"""Augmentations by name. Each takes image (h, w, 3) uint8 and mask (h, w) uint8 coverage, and moves both alike.

They are light on purpose: the camera is fixed on a turntable, so that test photos differ by car, not by pose, and a
study of this competition lost 0.0045 of Dice to heavy rotation.
"""

import random
from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np

from carvana.errors import InputError


def none() -> A.Compose:
    return A.Compose([])


def hflip() -> A.Compose:
    return A.Compose([A.HorizontalFlip(p=0.5)])


def light() -> A.Compose:
    return A.Compose([A.HorizontalFlip(p=0.5), _affine(), *_colours()])


def _affine() -> A.Affine:
    return A.Affine(
        scale=(0.9, 1.1),
        translate_percent=(-0.04, 0.04),
        rotate=(-3, 3),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_LINEAR,  # coverage stays coverage
        border_mode=cv2.BORDER_REFLECT_101,
        p=0.5,
    )


def _colours() -> list[A.BasicTransform]:
    return [
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
        A.HueSaturationValue(hue_shift_limit=15, sat_shift_limit=25, val_shift_limit=10, p=0.3),
        A.ToGray(p=0.1),
    ]


AUGMENTATIONS: dict[str, Callable[[], A.Compose]] = {"none": none, "hflip": hflip, "light": light}


def build_augmentation(name: str) -> A.Compose:
    """The named set. Raises InputError if there is none of that name."""
    if name not in AUGMENTATIONS:
        raise InputError(f"data.augmentation={name}: choose from {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]()


def augment(augmentation: A.Compose, image: np.ndarray, mask: np.ndarray, seed: list[int]) -> tuple:
    """Applies the augmentation that `seed` decides, whatever process does it and whatever was drawn before.

    One generator is shared by all transforms: `set_random_seed` would give each of them the same one, and a photo
    would be gray only when it is also flipped.
    """
    generator = np.random.default_rng(seed)
    augmentation.set_random_state(generator, random.Random(int(generator.integers(2**32))))
    result = augmentation(image=image, mask=mask)
    return result["image"], result["mask"]
