"""Faults planted in a drawn set are found and named; a clean one has none."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from PIL import Image

from carvana.audit import audit, robust_distance
from carvana.images import open_train
from carvana.inspection import contour_agreement


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """6 drawn cars in folders, 427x640 pixels."""
    root = tmp_path_factory.mktemp("audit") / "input"
    run_script("draw_demo_cars.py", "--output", root, "--train-cars", 6, "--test-cars", 1, "--size", "427x640")
    return root


@pytest.fixture
def place(drawn, tmp_path) -> Path:
    shutil.copytree(drawn, tmp_path / "input")
    return tmp_path / "input"


def photo_of(place: Path, image_id: str) -> Path:
    return next((place / "train").rglob(f"{image_id}.jpg"))


def mask_of(place: Path, image_id: str) -> Path:
    return next((place / "train_masks").rglob(f"{image_id}_mask.gif"))


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def write_mask(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def found(place: Path) -> list[tuple[str, str]]:
    """(kind, image id) of each finding."""
    return [(finding.kind, finding.image_id) for finding in audit(open_train(place))[1]]


def cars(place: Path) -> list[str]:
    return open_train(place).cars


def test_a_clean_set_has_no_finding(drawn, tmp_path):
    told = run_script("audit.py", "--input", drawn, "--output", tmp_path)
    assert "96 photos of 6 cars, 0 findings" in told.stdout
    assert "Nothing was found." in (tmp_path / "audit.html").read_text()
    table = pd.read_csv(tmp_path / "audit.csv", keep_default_na=False)
    assert len(table) == 96
    assert set(table["findings"]) == {""}
    assert set(table["colors"]) == {2}
    assert table["car_share"].between(0.05, 0.5).all()


def test_faults_end_with_status_1_and_are_drawn(place, tmp_path):
    image_id = f"{cars(place)[2]}_05"
    mask = read_mask(mask_of(place, image_id))
    write_mask(mask_of(place, image_id), 255 * ~mask)
    told = run_script("audit.py", "--input", place, "--output", tmp_path, check=False)
    assert told.returncode == 1
    assert f"fault: inverted masks: 1: {image_id}" in told.stdout
    page = (tmp_path / "audit.html").read_text()
    assert f'alt="{image_id} with the contour of its mask"' in page
    assert "data:image/webp" in page


def test_a_mask_of_another_size(place):
    image_id = f"{cars(place)[0]}_03"
    write_mask(mask_of(place, image_id), 255 * read_mask(mask_of(place, image_id))[:-1])
    assert found(place) == [("file", image_id)]


def test_a_photo_of_another_size(place):
    image_id = f"{cars(place)[0]}_03"
    image = cv2.imread(str(photo_of(place, image_id)))
    cv2.imwrite(str(photo_of(place, image_id)), image[:-8])
    write_mask(mask_of(place, image_id), 255 * read_mask(mask_of(place, image_id))[:-8])
    assert ("size", image_id) in found(place)


def test_gray_values_in_a_mask(place):
    image_id = f"{cars(place)[1]}_09"
    mask = read_mask(mask_of(place, image_id))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)
    write_mask(mask_of(place, image_id), 255 * soft)
    assert ("gray", image_id) in found(place)


def test_a_missing_angle(place):
    car = cars(place)[3]
    photo_of(place, f"{car}_07").unlink()
    mask_of(place, f"{car}_07").unlink()
    assert found(place) == [("angles", car)]


def test_swapped_masks_of_two_cars(place):
    one, other = (mask_of(place, f"{car}_05") for car in cars(place)[1:3])
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert ("swapped", f"{cars(place)[1]}_05") in found(place)


def test_a_stray_part_and_a_speck(place):
    image_id = f"{cars(place)[4]}_12"
    mask = read_mask(mask_of(place, image_id)).copy()
    mask[2:5, 2:5] = True
    inside = np.argwhere(cv2.erode(mask.astype(np.uint8), np.ones((9, 9))) > 0)[0]
    mask[inside[0], inside[1]] = False  # one pixel
    write_mask(mask_of(place, image_id), 255 * mask)
    assert found(place) == [("stray", image_id), ("speck", image_id)]


def test_a_truncated_photo(place):
    image_id = f"{cars(place)[5]}_16"
    photo_of(place, image_id).write_bytes(photo_of(place, image_id).read_bytes()[:-500])
    assert ("file", image_id) in found(place)


def test_a_copy_of_a_photo(place):
    one, other = (f"{cars(place)[number]}_02" for number in (0, 5))
    image = cv2.imread(str(photo_of(place, one)))
    cv2.imwrite(str(photo_of(place, other)), image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ("duplicate", one) in found(place)


def test_a_contour_agrees_with_the_photo_that_it_was_drawn_on():
    mask = np.zeros((128, 192), bool)
    cv2.ellipse(canvas := mask.view(np.uint8), (96, 64), (60, 30), 0, 0, 360, 1, -1)
    assert canvas.any()
    gray = cv2.resize(np.where(mask, 60, 200).astype(np.uint8), (96, 64), interpolation=cv2.INTER_AREA)
    assert contour_agreement(gray, mask) > 0.99
    assert contour_agreement(gray, np.roll(mask, 40, axis=1)) < 0.4
    assert contour_agreement(gray, np.zeros_like(mask)) == 1


def test_distance_from_the_median_is_robust():
    assert robust_distance([1.0, 1.1, 0.9, 1.0, 5.0], least=0.01)[-1] > 20
    assert np.abs(robust_distance([1.0, 1.0, 1.001], least=0.01)).max() < 1
