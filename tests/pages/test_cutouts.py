"""Masks and cut-outs of anyone's photos: any size, any proportions, and faults that stop nothing else."""

import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from carvana.data.geometry import Fit
from carvana.data.loader import Loading
from carvana.data.pictures import write_picture
from carvana.device import Device
from carvana.errors import InputError
from carvana.pages.cutouts import find_pictures, write_cutouts
from carvana.prediction.ensemble import Choice
from carvana.prediction.predictor import Member, Predictor


def half_white(size: tuple[int, int]) -> np.ndarray:
    """The upper half is white, the lower black."""
    return np.full((*size, 3), 255, np.uint8) * (np.arange(size[0]) < size[0] // 2)[:, None, None]


def test_a_mask_and_a_cut_out_for_each_photo_that_can_be_read(tmp_path, capsys):
    sizes, exif = {"wide": (40, 150), "tall": (150, 40), "tiny": (3, 2), "turned": (60, 40)}, Image.Exif()
    for name, size in sizes.items():
        write_picture(tmp_path / "photos" / f"{name}.png", half_white(size))
    exif[0x0112] = 6  # orientation: the camera was turned by 90 degrees
    Image.fromarray(np.rot90(half_white((60, 40)))).save(tmp_path / "photos" / "turned.png", exif=exif)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "empty.jpg").touch()

    bright = lambda images: (images.float().mean(1, keepdim=True) > 127).float()
    mix = [Member(Fit((64, 96), "pad"), bright, 3.0), Member(Fit((32, 64)), bright)]
    predictor = Predictor([mix], Device(torch.device("cpu")), Loading())
    choice = Choice(experiments={"tiny": 1.0}, views=["identity"], threshold=0.5)
    assert write_cutouts(predictor, find_pictures(tmp_path / "photos"), tmp_path / "masks", choice) == 2
    complaints = re.findall(r"error: \S+/(\w+\.jpg): not a picture", capsys.readouterr().err)
    assert complaints == ["broken.jpg", "empty.jpg"]
    files = [(f"{name}_mask.png", f"{name}_cutout.png") for name in sizes]
    assert {path.name for path in (tmp_path / "masks").iterdir()} == set(sum(files, ()))
    for size, names in zip(sizes.values(), files, strict=True):
        mask, cutout = (cv2.imread(str(tmp_path / "masks" / name), cv2.IMREAD_UNCHANGED) for name in names)
        assert (mask.shape, set(np.unique(mask))) == (size, {0, 255})
        assert min(size) < 8 or abs((mask > 0).mean() - 0.5) < 0.03
        assert (cutout == np.dstack([half_white(size), mask])).all()


def test_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "tall.jpg").touch()
    (tmp_path / "photos" / "tall.png").touch()
    for name, words in (("no", "no such folder"), (".", "holds no picture"), ("photos", "several pictures named tall")):
        with pytest.raises(InputError, match=words):
            find_pictures(tmp_path / name)
