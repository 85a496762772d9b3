"""Masks and cut-outs of anyone's photos: any size, any proportions, soft edges, and faults that stop nothing else."""

import os
import re
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from browser import NEEDS_BROWSER, browser
from PIL import Image

from carvana.data.geometry import Fit
from carvana.data.loader import Loading
from carvana.data.own_photos import OwnPhoto, find_photos
from carvana.device import Device
from carvana.errors import InputError
from carvana.pages import cutouts
from carvana.pages.cutouts import Style, cut_out, write_cutouts
from carvana.pages.pictures import write_picture
from carvana.prediction import matting
from carvana.prediction.ensemble import Choice
from carvana.prediction.predictor import Member, Predictor

CHOICE = Choice(experiments={"tiny": 1.0}, views=["identity"], threshold=0.5)
HARD = Style(hard=True)
WHITE_CAR = [Member(Fit((64, 96), "pad"), lambda images: (images.float().mean(1, keepdim=True) > 127).float())]
RED_CAR = [Member(Fit((64, 96)), lambda images: (images[:, 1:2] < 130).float())]


def predictor(mix: list[Member]) -> Predictor:
    return Predictor([mix], Device(torch.device("cpu")), Loading())


def half_white(size: tuple[int, int]) -> np.ndarray:
    """The upper half is white, the lower black."""
    return np.full((*size, 3), 255, np.uint8) * (np.arange(size[0]) < size[0] // 2)[:, None, None]


def red_disc() -> tuple[np.ndarray, np.ndarray]:
    """A photo (192, 288, 3) of a red disc in front of white, and its alpha in [0, 1]."""
    disc = cv2.circle(np.zeros((768, 1152), np.uint8), (576, 384), 260, 255, cv2.FILLED)
    alpha = cv2.resize(disc, (288, 192), interpolation=cv2.INTER_AREA)[..., None] / 255
    return np.rint(alpha * (180, 20, 30) + (1 - alpha) * 255).astype(np.uint8), alpha[..., 0]


def test_a_mask_and_a_cut_out_for_each_photo_that_can_be_read(tmp_path, capsys):
    sizes, exif = {"wide": (40, 150), "tall": (150, 40), "tiny": (3, 2), "turned": (60, 40)}, Image.Exif()
    for name, size in sizes.items():
        write_picture(tmp_path / "photos" / f"{name}.png", half_white(size))
    exif[0x0112] = 6  # orientation: the camera was turned by 90 degrees
    Image.fromarray(np.rot90(half_white((60, 40)))).save(tmp_path / "photos" / "turned.png", exif=exif)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "empty.jpg").touch()

    mix = [WHITE_CAR[0]._replace(weight=3.0), WHITE_CAR[0]._replace(fit=Fit((32, 64)))]
    targets = find_photos(tmp_path / "photos", tmp_path / "cut")
    kept, faults = write_cutouts(predictor(mix), CHOICE, targets, tmp_path / "cut", HARD, True)
    assert (kept, [path.name for path in faults]) == (0, ["broken.jpg", "empty.jpg"])
    assert re.findall(r"error: \S+/(\w+\.jpg): not a picture", capsys.readouterr().err) == ["broken.jpg", "empty.jpg"]
    files = [(f"{name}_mask.png", f"{name}_cutout.png") for name in sizes]
    assert {path.name for path in (tmp_path / "cut").iterdir()} == set(sum(files, ("cutouts.html",)))
    for size, names in zip(sizes.values(), files, strict=True):
        mask, cutout = (cv2.imread(str(tmp_path / "cut" / name), cv2.IMREAD_UNCHANGED) for name in names)
        assert (mask.shape, set(np.unique(mask))) == (size, {0, 255})
        assert min(size) < 8 or abs((mask > 0).mean() - 0.5) < 0.03
        assert (cutout == np.dstack([half_white(size) * (mask[..., None] > 0), mask])).all()


@pytest.mark.parametrize("method", ["closed-form matting", "local colours"])
def test_the_rim_is_soft_and_holds_the_cars_colour(method, monkeypatch):
    if method == "local colours":
        monkeypatch.setattr(matting, "find_closed_form", lambda: None)
    else:
        pytest.importorskip("pymatting")
    assert matting.method() == method
    image, true = red_disc()
    alpha, colors = cut_out(predictor(RED_CAR), CHOICE, OwnPhoto(image, None, None), Style())
    hard, copied = cut_out(predictor(RED_CAR), CHOICE, OwnPhoto(image, None, None), HARD)
    rim = (true > 0) & (true < 1)
    assert np.abs(alpha / 255 - true)[rim].mean() < 0.25 * np.abs(hard / 255 - true)[rim].mean()
    assert np.abs(colors[rim & (alpha > 40)].astype(int) - (180, 20, 30)).mean() < 12
    assert np.abs(copied[rim & (hard > 0)].astype(int) - (180, 20, 30)).mean() > 30  # the white that shone through
    assert not colors[alpha == 0].any()
    assert not copied[hard == 0].any()
    for size in ((1, 1), (2, 90), (90, 2)):
        mask = np.indices(size).sum(0) % 30 < 15
        assert matting.refine(np.zeros((*size, 3), np.uint8), mask, 1)[0].shape == size


def test_the_photos_own_alpha_limits_the_cut_out():
    image, _ = red_disc()
    own = np.where(np.arange(288) < 144, 200, 0).astype(np.uint8) * np.ones((192, 1), np.uint8)
    image[own == 0] = (255, 0, 255)
    alpha, colors = cut_out(predictor(RED_CAR), CHOICE, OwnPhoto(image, own, None), Style())
    assert (alpha.max(), (alpha <= own).all()) == (200, True)
    assert not (colors == (255, 0, 255)).all(axis=2).any()
    assert colors[96, 100].tolist() == [180, 20, 30]


def test_what_is_current_is_kept_and_own_files_are_not_cut_again(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, half_white((40, 60)))
    (tmp_path / "broken.jpg").touch()
    write = lambda overwrite=False, style=HARD, choice=CHOICE, networks="": write_cutouts(
        predictor(WHITE_CAR), choice, find_photos(tmp_path, tmp_path), tmp_path, style, overwrite, networks
    )[0]
    assert (write(), write(), write(overwrite=True), write()) == (0, 2, 0, 2)
    write_picture(tmp_path / "a.png", half_white((40, 62)))  # another photo of this name, an old one
    os.utime(tmp_path / "a.png", (0, 0))
    assert (write(), write()) == (1, 2)
    finer = CHOICE.model_copy(update={"threshold": 0.501})  # reads alike
    assert (write(choice=finer), write(choice=finer, networks="other"), write(networks="other")) == (0, 0, 0)
    assert write(style=Style(hard=True, background="white")) == 0
    (room := tmp_path / "room").mkdir()
    painted = Style(hard=True, background=str(room / "wall.png"))
    for color, kept in ((9, (0, 2)), (99, (0, 2))):
        write_picture(room / "wall.png", np.full((4, 4, 3), color, np.uint8))
        assert (write(style=painted), write(style=painted)) == kept
    assert len(find_photos(tmp_path, tmp_path)) == 3


def test_files_not_made_here_are_replaced_only_if_asked_for(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "photos" / name, half_white((40, 60)))
    targets = find_photos(tmp_path / "photos", tmp_path)
    write = lambda overwrite: write_cutouts(predictor(WHITE_CAR), CHOICE, targets, tmp_path, HARD, overwrite)
    own = tmp_path / "a_cutout.png"
    write_picture(own, half_white((9, 9)))
    before = own.read_bytes()
    kept, faults = write(False)
    assert (kept, list(faults.values())) == (0, [f"{own}: not made here; --overwrite replaces it"])
    assert (own.read_bytes(), (tmp_path / "b_cutout.png").exists()) == (before, True)
    assert (write(True), write(False)) == ((0, {}), (2, {}))


@pytest.mark.parametrize(("where", "error"), [
    ("cut_out", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
    ("cut_out", torch.OutOfMemoryError("CUDA out of memory")), ("compose", MemoryError()),
    ("_preview", cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes")),
    ("cut_out", RuntimeError("a mistake of ours")),
])  # fmt: skip
def test_a_photo_that_does_not_fit_into_memory_stops_no_other(where, error, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, half_white((40, 60)))
    whole, effects = getattr(cutouts, where), Mock(side_effect=[error, None])
    monkeypatch.setattr(cutouts, where, lambda *args: effects() or whole(*args))
    write = lambda: write_cutouts(
        predictor(WHITE_CAR), CHOICE, find_photos(tmp_path, tmp_path), tmp_path, Style(background="red"), False
    )
    if "ours" in str(error):
        with pytest.raises(RuntimeError, match="ours"):
            write()
    else:
        assert write() == (
            0,
            {tmp_path / "a.png": f"{tmp_path / 'a.png'}: does not fit into the memory; make it smaller"},
        )


def test_a_kept_photo_that_was_damaged_since_stops_no_other(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, half_white((40, 60)))
    write = lambda: write_cutouts(predictor(WHITE_CAR), CHOICE, find_photos(tmp_path, tmp_path), tmp_path, HARD, False)
    assert write() == (0, {})
    (tmp_path / "a.png").write_bytes(b"damaged")
    kept, faults = write()
    assert (kept, [path.name for path in faults]) == (1, ["a.png"])


def test_on_a_background(tmp_path):
    write_picture(tmp_path / "photos" / "a.png", half_white((40, 60)))
    write_picture(tmp_path / "green.png", np.full((10, 10, 3), (0, 200, 0), np.uint8))
    targets = find_photos(tmp_path / "photos", tmp_path)
    for background, color in (("red", (255, 0, 0)), ("#0a141e", (10, 20, 30)), (tmp_path / "green.png", (0, 200, 0))):
        write_cutouts(predictor(WHITE_CAR), CHOICE, targets, tmp_path, Style(background=str(background)), True)
        picture = np.array(Image.open(tmp_path / "a_cutout.png"))
        assert (picture.shape, picture[35, 30].tolist(), picture[5, 30].min()) == ((40, 60, 3), [*color], 255)
    with pytest.raises(InputError, match="--background grean: neither a file nor a colour"):
        Style(background="grean").open_background()


def test_tiles_give_the_map_of_the_whole_where_a_network_sees_no_further(monkeypatch):
    monkeypatch.setattr("carvana.prediction.predictor.TILE", 64)
    image = cv2.resize(red_disc()[0], (1918, 1280), interpolation=cv2.INTER_CUBIC)
    mix = [Member(Fit((256, 384)), lambda images: ((255 - images[:, 1:2].float()) / 235).clamp(0, 1))]
    whole, tiled = (predictor(mix).predict_image(image, tiles).numpy() for tiles in (False, True))
    assert (whole != tiled).any()
    masks = whole >= 0.5, tiled >= 0.5
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.9995


@NEEDS_BROWSER
def test_the_page_slides_from_cut_out_to_photo(tmp_path):
    Image.fromarray(red_disc()[0]).save(tmp_path / "<disc>.png")
    (tmp_path / "broken.jpg").touch()
    write_cutouts(predictor(RED_CAR), CHOICE, find_photos(tmp_path, tmp_path), tmp_path, Style(), True)
    with browser() as open_page:
        page = open_page(tmp_path / "cutouts.html", 390)
        assert page.locator("h2").all_inner_texts() == ["<disc>.png"]
        assert "broken.jpg: not a picture" in page.locator("#faults").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for key, share in (("End", "0%"), ("ArrowLeft", "1%"), ("Home", "100%")):
            page.locator("input").press(key)
            clip = f"getComputedStyle(document.querySelector('.over')).clipPath.startsWith('inset(0px {share} 0px 0px')"
            page.wait_for_function(clip)
        page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth === 288)")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
