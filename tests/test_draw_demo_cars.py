"""The drawn cars: files as Kaggle names them, exact masks, the same bytes from the same seed."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import draw_demo_cars
from carvana.errors import InputError

CARS, SIZE = len(draw_demo_cars.STYLES), (160, 240)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A training car of every body style and one test car."""
    output = tmp_path_factory.mktemp("demo")
    draw(output, train_cars=CARS)
    return output


def draw(output, train_cars=1, test_cars=1, size="160x240", seed=3, workers=2):
    draw_demo_cars.main(output, train_cars, test_cars, size, seed, workers)


def contents(output, pattern="*/*"):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.glob(pattern)}


def load_masks(demo, folder="train_masks"):
    return {path: np.array(Image.open(path)) for path in sorted((demo / folder).iterdir())}


def test_files_are_named_as_kaggle_names_them(demo):
    for part, cars in (("train", CARS), ("test", 1)):
        photos = sorted(path.name for path in (demo / part).iterdir())
        masks = sorted(path.name for path in (demo / f"{part}_masks").iterdir())
        assert len(photos) == 16 * cars
        assert all(re.fullmatch(r"[0-9a-f]{12}_(0[1-9]|1[0-6])\.jpg", name) for name in photos)
        assert masks == [name.replace(".jpg", "_mask.gif") for name in photos]
    assert not {path.name for path in (demo / "train").iterdir()} & {path.name for path in (demo / "test").iterdir()}


def test_photo_and_mask_have_the_size_asked_for(demo):
    for path, mask in load_masks(demo).items():
        photo = cv2.imread(str(demo / "train" / path.name.replace("_mask.gif", ".jpg")))
        assert photo.shape == (*SIZE, 3)
        assert mask.shape == SIZE


def test_masks_are_palette_gifs_of_zero_and_one(demo):
    for path, mask in load_masks(demo).items():
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("GIF", "P")
        assert set(np.unique(mask)) == {0, 1}


def test_every_body_covers_a_share_as_in_the_real_photos(demo):
    masks = load_masks(demo)
    shares = [np.mean([mask.mean() for mask in list(masks.values())[start : start + 16]]) for start in range(0, 80, 16)]
    assert len(shares) == CARS
    assert all(0.13 < share < 0.36 for share in shares)
    assert 0.18 < np.mean(shares) < 0.25


def test_a_mask_is_one_car_that_does_not_reach_the_top_or_bottom(demo):
    for mask in load_masks(demo).values():
        pixels = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
        assert pixels.max() / pixels.sum() > 0.98
        assert not mask[0].any()
        assert not mask[-1].any()


def test_the_room_shines_through_outside_the_mask_only():
    car = draw_demo_cars.Car(draw_demo_cars.STYLES[0], (0.9, 0.9, 0.9, 0), np.random.default_rng(0), 0.5)
    camera = draw_demo_cars.Camera((320, 480), np.array([8.2, 0, 1.75]), np.array([0, 0, 0.95]), 650)
    black = np.zeros((320, 480, 3), np.float32)
    photos, masks = zip(
        *(draw_demo_cars.draw_photo(car, camera, room, 0.8, np.array([0, 0, 1.0])) for room in (black, black + 255)),
        strict=True,
    )
    np.testing.assert_array_equal(*masks)
    share = 1 - (photos[1] - photos[0])[..., 0] / 255  # of the pixel that is not room
    core = cv2.erode(masks[0], np.ones((3, 3), np.uint8)) == 1
    assert (share[core] > 0.999).mean() > 0.999
    assert share[masks[0] == 1].min() > 0.499
    assert share[:100][masks[0][:100] == 0].max() < 0.501  # higher up than shadow and reflection


def test_the_car_turns_by_a_sixteenth(demo):
    first = list(load_masks(demo).values())[:16]
    widths = [np.flatnonzero(mask.any(0)).size for mask in first]
    assert np.argsort(widths)[:2].tolist() in ([0, 8], [8, 0])  # 01 is the front, 09 the rear
    assert min(widths[4], widths[12]) > 1.7 * max(widths[0], widths[8])


def test_metadata_and_sample_list_every_car_and_test_photo(demo):
    header, *rows = (demo / "metadata.csv").read_text().splitlines()
    assert header == "id,year,make,model,trim1,trim2"
    cars = {path.name[:12] for path in [*(demo / "train").iterdir(), *(demo / "test").iterdir()]}
    assert [row.split(",")[0] for row in rows] == sorted(cars)
    assert {row.split(",")[4] for row in rows} == {style.name for style in draw_demo_cars.STYLES}
    header, *rows = (demo / "sample_submission.csv").read_text().splitlines()
    assert header == "img,rle_mask"
    assert rows == [f"{name},1 1" for name in sorted(path.name for path in (demo / "test").iterdir())]


def test_the_same_seed_gives_the_same_bytes_however_many_cars_and_processes(demo, tmp_path):
    draw(tmp_path, test_cars=0, workers=1)
    car = contents(tmp_path)
    assert len(car) == 32
    assert car.items() <= contents(demo).items()


def test_a_second_drawing_completes_the_first_and_another_seed_replaces_it(tmp_path):
    draw(tmp_path, test_cars=0)
    before = contents(tmp_path)
    lost, kept = sorted((tmp_path / "train").iterdir())[:2]
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    draw(tmp_path, test_cars=0)
    assert contents(tmp_path) == before
    assert kept.stat().st_mtime_ns == stamp
    (tmp_path / "train" / "mine.jpg").write_bytes(b"not drawn")
    draw(tmp_path, test_cars=0, seed=4)
    after = contents(tmp_path)
    assert set(after) & set(before) == set()
    assert after.pop("train/mine.jpg") == b"not drawn"
    assert len(after) == 32
    assert not set(after.values()) & set(before.values())
    assert json.loads((tmp_path / "drawn.json").read_text())["seed"] == 4


def test_nothing_temporary_is_left(demo):
    assert not [path for path in demo.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    "bad",
    [
        {"train_cars": 0},
        {"test_cars": -1},
        {"seed": -1},
        {"workers": 0},
        {"size": "1280"},
        {"size": "0x0"},
        {"size": "9999x9999"},
        {"size": "axb"},
    ],
)
def test_bad_values_are_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(InputError, match=r"^[^\n]*give [^\n]*$"):
        draw(tmp_path / "demo", **bad)
    assert not (tmp_path / "demo").exists()


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "metadata.csv").write_text("real")
    with pytest.raises(InputError, match="did not draw"):
        draw(tmp_path)
    (tmp_path / "drawn.json").write_text("{")
    with pytest.raises(InputError, match=r"drawn\.json"):
        draw(tmp_path)
    assert (tmp_path / "metadata.csv").read_text() == "real"


def test_the_script_ends_with_status_2_and_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for arguments in (["--train-cars", "0"], ["--output", str(tmp_path / "file" / "demo")]):
        script = [sys.executable, draw_demo_cars.__file__, *arguments]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
