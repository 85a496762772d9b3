"""The drawn cars: files as Kaggle names them, exact masks, the same bytes from the same seed."""

import os

import cv2
import numpy as np
import pytest
from conftest import run_script
from PIL import Image

from carvana.errors import InputError
from demo import drawing
from demo.car import STYLES, Car
from demo.drawing import draw_demo
from demo.studio import Camera, draw_photo


def contents(output):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.glob("*/*")}


def test_files_are_named_as_kaggle_names_them(demo):
    files, samples = contents(demo / "input"), (demo / "input" / "sample_submission.csv").read_text().splitlines()
    photos = [name.removesuffix(".jpg") for name in files if name.endswith(".jpg")]
    cars = {photo[:-3] for photo in photos}
    assert sorted(car.split("/")[0] for car in cars) == ["test", *["train"] * 4]
    assert sorted(photos) == sorted(f"{car}_{angle:02d}" for car in cars for angle in range(1, 17))
    masks = {f"{photo.replace('/', '_masks/')}_mask.gif" for photo in photos}
    assert files.keys() == {f"{photo}.jpg" for photo in photos} | masks
    test = sorted(photo.removeprefix("test/") for photo in photos if photo.startswith("test"))
    assert samples == ["img,rle_mask", *[f"{photo}.jpg,1 1" for photo in test]]


def test_masks_are_palette_gifs_of_cars_that_are_as_large_as_real_ones_and_turn(demo):
    masks = []
    for path in sorted((demo / "input").glob("*_masks/*")):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("GIF", "P")
            masks.append(np.array(picture))
        pixels = cv2.connectedComponentsWithStats(masks[-1])[2][1:, cv2.CC_STAT_AREA]
        assert pixels.max() / pixels.sum() > 0.98
        photo = path.parents[1] / path.parent.name.removesuffix("_masks") / path.name.replace("_mask.gif", ".jpg")
        assert cv2.imread(str(photo)).shape == (96, 144, 3)
    cars = np.reshape(masks, (len(STYLES), 16, 96, 144))
    assert set(np.unique(cars)) == {0, 1}
    assert not cars[:, :, [0, -1]].any()
    shares = cars.mean((1, 2, 3))
    assert [shares.min() > 0.13, 0.18 < shares.mean() < 0.25, shares.max() < 0.36] == [True] * 3
    widths = cars.any(2).sum(2)  # 01 is the front, 09 the rear
    assert (widths[:, [4, 12]].min(1) > 1.7 * widths[:, [0, 8]].max(1)).all()


def test_the_room_shines_through_outside_the_mask_only():
    car = Car(STYLES[0], (0.9, 0.9, 0.9, 0), np.random.default_rng(0), 0.5)
    camera = Camera((320, 480), np.array([8.2, 0, 1.75]), np.array([0, 0, 0.95]), 650)
    rooms = [np.full((320, 480, 3), gray, np.float32) for gray in (0, 255)]
    (dark, mask), (light, same) = (draw_photo(car, camera, room, 0.8, np.array([0, 0, 1.0])) for room in rooms)
    assert (mask == same).all()
    share = 1 - (light - dark)[..., 0] / 255  # of the pixel that is not room
    core = cv2.erode(mask, np.ones((3, 3), np.uint8)) == 1
    assert (share[core] > 0.999).mean() > 0.999
    assert share[mask == 1].min() > 0.499
    assert share[:100][mask[:100] == 0].max() < 0.501  # higher up than shadow and reflection


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(demo, tmp_path):
    options = ["--test-cars", 0, "--size", "96x144", "--output", tmp_path]
    run_script("draw.py", "demo", *options, "--train-cars", 2, "--workers", 2)
    before = contents(tmp_path)
    assert (len(before), before.items() <= contents(demo / "input").items()) == (64, True)
    lost, kept = sorted((tmp_path / "train").iterdir())[:2]
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    run_script("draw.py", "demo", *options, "--train-cars", 2)
    assert (contents(tmp_path), kept.stat().st_mtime_ns) == (before, stamp)
    other = run_script("draw.py", "demo", *options, "--train-cars", 2, "--seed", 4, check=False)
    assert (other.returncode, contents(tmp_path)) == (2, before)
    assert "holds other photos than these; remove them" in other.stderr
    run_script("draw.py", "demo", *options[:-1], tmp_path / "other", "--train-cars", 1, "--seed", 4)
    after = contents(tmp_path / "other")
    assert (len(after), {*after, *after.values()} & {*before, *before.values()}) == (32, set())


def test_a_killed_process_ends_the_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "_start_worker", os.abort)
    with pytest.raises(InputError, match=r"a process that draws was killed, .*; give fewer --workers"):
        draw_demo(tmp_path, 2, 0, (96, 144), seed=3, workers=2)


def test_a_wrong_size_and_files_of_others_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "metadata.csv").write_text("real")
    for size, words in (((1, 1), "each from 64 to 4096"), ((99, 9999), "each from"), ((96, 144), "holds other photos")):
        with pytest.raises(InputError, match=words):
            draw_demo(tmp_path, 1, 0, size, seed=3, workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"metadata.csv"}
