"""Soft masks: the probabilities that networks gave photos, in a zip file of 8-bit PNGs of half the photos' size.

A photo takes 20 KB, so the test's 100,064 take 2 GB (mean of 1,408, by five networks of 512x768, hflip). Half the size
is enough: brought back and cut at one half, the masks have Dice 0.99994 with those of the probabilities themselves.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePath
from zipfile import ZipFile, ZipInfo

import cv2
import numpy as np
import torch
from PIL import Image

from carvana.config import DataConfig
from carvana.data.geometry import Fit, Size, shrink
from carvana.data.images import Photos
from carvana.data.labels import SOFT, Source, read_source
from carvana.data.parts import BROKEN, ZipPart
from carvana.errors import InputError
from carvana.log import replacing, say


def encode_soft(probs: torch.Tensor) -> bytes:
    """Probabilities (H, W) as a PNG of half the size: 255 times the mean of what each pixel covers."""
    pixels = (255 * probs).round().to(torch.uint8).cpu().numpy()
    encoded = BytesIO()
    Image.fromarray(shrink(pixels, tuple(-(-side // 2) for side in pixels.shape))).save(encoded, "png")
    return encoded.getvalue()


def decode_soft(data: bytes, size: Size) -> np.ndarray:
    """Undoes `encode_soft`: uint8 (height, width), 255 times the probability."""
    with Image.open(BytesIO(data)) as image:
        return cv2.resize(np.asarray(image), size[::-1], interpolation=cv2.INTER_LINEAR)


def write_soft(path: Path, masks: Iterable[tuple[str, bytes]]) -> None:
    """Names and contents of PNGs, as they come; whole or not at all, and equal ones give equal bytes."""
    with replacing(path) as temporary, ZipFile(temporary, "w") as file:
        for name, data in masks:
            file.writestr(ZipInfo(name), data)  # dated 1980; stored, as a PNG is compressed


def read_soft(path: Path) -> Iterator[tuple[str, bytes]]:
    """What `write_soft` wrote, in its order. Raises InputError if the file is missing or broken."""
    try:
        with ZipFile(path) as file:
            for name in file.namelist():
                yield name, file.read(name)
    except BROKEN as error:
        raise InputError(f"{path}: missing, cut or corrupt ({error}); write it again") from None


class SoftMasks:
    """Masks of photos as a file of soft masks holds them, which is read in place."""

    layers = ()  # as those of `Photos`

    def __init__(self, source: Source):
        self.source, self.part = source, ZipPart(source.path)

    @cached_property
    def image_ids(self) -> dict[str, None]:
        """In their order; `in` looks one up at once."""
        return dict.fromkeys(PurePath(name).stem for name in self.part.names)

    def only(self, _: Iterable[str]) -> "SoftMasks":
        """Itself: no mask is in memory."""
        return self

    def mask(self, image_id: str) -> np.ndarray:
        """uint8 (height, width) at photo size, 255 times the probability."""
        return decode_soft(self.part.read(f"{image_id}.png"), self.source.size)


def open_soft(data: DataConfig) -> tuple[SoftMasks, ...]:
    """What `data.soft` names. Raises InputError if a file is not as it was written, or is not out-of-fold."""
    sources = [read_source(Path(path), "data.soft") for path in data.soft]
    for source in sources:
        if source.kind != SOFT or not source.out_of_fold:
            raise InputError(f"data.soft: {source.path}: not of photos with masks; src/evaluate.py --soft writes those")
    masks = tuple(map(SoftMasks, sources))
    for each in masks:
        say(f"{each.source.path}: out-of-fold probabilities of {len(each.image_ids)} photos")
    return masks


class SoftenedPhotos:
    """Photos whose target is their true mask and, by `share`, what networks that never saw the car make of it.

    Of several files the mean is taken, of those that hold the photo.
    """

    layers = ()

    def __init__(self, photos: Photos, soft: tuple[SoftMasks, ...], share: float):
        self.photos, self.soft, self.share, self.image_ids = photos, soft, share, photos.image_ids

    def mask(self, image_id: str) -> np.ndarray:
        """uint8 (height, width), 255 times the target; bool where no file holds the photo.

        Raises InputError if the probabilities are of a photo of another size.
        """
        mask = self.photos.mask(image_id)
        holding = [soft for soft in self.soft if image_id in soft.image_ids]
        for soft in holding:
            if soft.source.size != mask.shape:
                sizes = f"of {soft.source.size}, but {self.photos.mask_name(image_id)} is of {mask.shape}"
                raise InputError(f"data.soft: {soft.source.path}: {sizes}")
        if not holding:
            return mask
        probs = np.mean([soft.mask(image_id) for soft in holding], axis=0, dtype=np.float32)
        return cv2.addWeighted(mask.astype(np.float32), 255 * (1 - self.share), probs, self.share, 0.5).astype(np.uint8)

    def fitted(self, image_id: str, fits: list[Fit]) -> tuple[list[np.ndarray], Size]:
        """As `Photos.fitted`."""
        return self.photos.fitted(image_id, fits)
