"""Masks and cut-outs of anyone's photos: any size, any proportions, and faults that stop nothing else."""

import cv2
import numpy as np
import pytest
import torch
from conftest import run_script

from carvana.choice import Choice
from carvana.cutouts import find_pictures, read_picture, write_cutouts
from carvana.device import Device
from carvana.errors import InputError
from carvana.geometry import Fit
from carvana.inference import Member
from carvana.pictures import write_picture

CPU = Device(torch.device("cpu"))
SIZES = {"wide": (40, 150), "tall": (150, 40), "tiny": (3, 2)}
CHOICE = Choice(experiments={"tiny": 1.0}, views=["identity"], threshold=0.5)


def bright(images: torch.Tensor) -> torch.Tensor:
    return (images.float().mean(1, keepdim=True) > 127).float()


def half_white(size: tuple[int, int]) -> np.ndarray:
    """The upper half is white, the lower black."""
    image = np.zeros((*size, 3), np.uint8)
    image[: size[0] // 2] = 255
    return image


@pytest.fixture
def folder(tmp_path):
    for name, size in SIZES.items():
        write_picture(tmp_path / "photos" / f"{name}.png", half_white(size))
    return tmp_path / "photos"


def test_a_mask_and_a_cut_out_for_each_photo_at_its_size(folder, tmp_path):
    members = [Member(Fit((64, 96), "pad"), bright, 3.0), Member(Fit((32, 64)), bright)]
    assert write_cutouts(members, find_pictures(folder), tmp_path / "masks", CHOICE, CPU) == 0
    assert len(list((tmp_path / "masks").iterdir())) == 2 * len(SIZES)
    for name, size in SIZES.items():
        mask = cv2.imread(str(tmp_path / "masks" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
        cutout = cv2.imread(str(tmp_path / "masks" / f"{name}_cutout.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        if min(size) > 8:
            assert abs((mask > 0).mean() - 0.5) < 0.03
        assert cutout.shape == (*size, 4)
        assert (cutout[..., 3] == mask).all()
        assert (cutout[..., :3] == half_white(size)).all()


@pytest.mark.parametrize("size", [(1280, 1918), (4000, 3000), (3000, 4000), (10, 10000), (1, 1)])
def test_a_fit_for_any_proportions_keeps_the_pixels(size):
    height, width = Fit((512, 768)).like(size).size
    assert height % 32 == width % 32 == 0
    if max(size) < 4 * min(size) and min(size) > 1:
        assert height * width == pytest.approx(512 * 768, rel=0.1)
        assert height / width == pytest.approx(size[0] / size[1], rel=0.05)


def test_an_unreadable_photo_is_told_and_the_others_are_done(folder, tmp_path, capsys):
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.jpg").touch()
    assert write_cutouts([Member(Fit((32, 64)), bright)], find_pictures(folder), tmp_path / "masks", CHOICE, CPU) == 2
    assert "broken.jpg" in (told := capsys.readouterr().err)
    assert "empty.jpg" in told
    assert len(list((tmp_path / "masks").iterdir())) == 2 * len(SIZES)


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path):
    from PIL import Image

    image, exif = Image.fromarray(half_white((40, 60))), Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (60, 40, 3)


def test_folders_that_cannot_be_read(tmp_path, folder):
    with pytest.raises(InputError, match="no such folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no picture"):
        find_pictures(tmp_path)
    (folder / "tall.jpg").touch()
    with pytest.raises(InputError, match="several pictures named tall"):
        find_pictures(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "x"], "belong together"),
        (["--masks-out", "x"], "belong together"),
        (["--images", "x", "--masks-out", "y", "--output", "z.csv"], "without --output"),
        (["--images", "x", "--masks-out", "y"], "no trained fold"),
    ],
)
def test_mistakes_with_options(options, message, tmp_path):
    result = run_script("make_submission.py", "tiny", *options, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
