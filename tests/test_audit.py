"""Faults planted in a drawn set are found and named; a clean one has none."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from PIL import Image

from carvana.audit import audit
from carvana.findings import deviations_below
from carvana.images import open_train
from carvana.inspection import edge_agreement

SIZE = "240x360"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """6 drawn cars in folders."""
    root = tmp_path_factory.mktemp("audit") / "input"
    run_script("draw_demo_cars.py", "--output", root, "--train-cars", 6, "--test-cars", 0, "--size", SIZE)
    return root


@pytest.fixture
def place(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / "input")


def photo_of(place: Path, image_id: str) -> Path:
    return place / "train" / f"{image_id}.jpg"


def mask_of(place: Path, image_id: str) -> Path:
    return place / "train_masks" / f"{image_id}_mask.gif"


def read_mask(place: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(mask_of(place, image_id))) > 0


def write_mask(place: Path, image_id: str, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(mask_of(place, image_id))


def image_of(place: Path, car: int, angle: int) -> str:
    return f"{open_train(place).cars[car]}_{angle:02d}"


def found(place: Path) -> list[tuple[str, str]]:
    """(kind, what it is about) of each finding."""
    return [(kind, finding.name) for kind, some in audit(open_train(place))[1].items() for finding in some]


def texts(place: Path, kind: str) -> list[str]:
    return [finding.text for finding in audit(open_train(place))[1][kind]]


def test_a_clean_set_has_no_finding(drawn, tmp_path):
    told = run_script("audit.py", "--input", drawn, "--output", tmp_path)
    assert told.stdout == f"{tmp_path / 'audit.html'}: 96 photos of 6 cars, 0 faults, 0 warnings\n"
    assert "Nothing was found." in (tmp_path / "audit.html").read_text()
    table = pd.read_csv(tmp_path / "audit.csv", keep_default_na=False)
    assert len(table) == 96
    assert set(table["faults"]) == set(table["warnings"]) == {""}
    assert set(table["colors"]) == {2}
    assert set(table["components"]) == {1}
    assert table["car_share"].between(0.05, 0.5).all()
    assert table["edge_agreement"].between(0.75, 1).all()


def test_faults_end_with_status_1_and_are_drawn(place, tmp_path):
    image_id, stray = image_of(place, 2, 5), image_of(place, 3, 1)
    write_mask(place, image_id, 255 * ~read_mask(place, image_id))
    mask = read_mask(place, stray).copy()
    mask[3:5, 3:5] = True
    write_mask(place, stray, 255 * mask)
    told = run_script("audit.py", "--input", place, "--output", tmp_path / "out", check=False)
    assert told.returncode == 1
    lines = told.stdout.splitlines()
    assert lines[:2] == [f"fault: Inverted masks: 1: {image_id}", f"warning: Stray parts: 1: {stray}"]
    assert lines[2].endswith("audit.html: 96 photos of 6 cars, 1 faults, 1 warnings")
    page = (tmp_path / "out" / "audit.html").read_text()
    for one in (image_id, stray):
        assert 'src="data:image/webp;base64,' in page
        assert f'alt="{one} with the contour of its mask"' in page
    table = pd.read_csv(tmp_path / "out" / "audit.csv", keep_default_na=False, index_col="image_id")
    assert table.loc[image_id, "faults"].startswith(f"inverted: {image_id}_mask.gif")
    assert table.loc[stray, "warnings"] == "stray: 1, the largest of 4 pixels"
    assert list(table.loc[stray, ["components", "largest_stray"]]) == [2, 4]


def test_what_cannot_be_audited_ends_with_status_2(tmp_path):
    told = run_script("audit.py", "--input", tmp_path / "absent", "--output", tmp_path / "out", check=False)
    assert told.returncode == 2
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_inverted_and_empty_masks(place):
    inverted, empty = image_of(place, 0, 2), image_of(place, 1, 2)
    write_mask(place, inverted, 255 * ~read_mask(place, inverted))
    write_mask(place, empty, 0 * read_mask(place, empty))
    assert found(place) == [("empty", empty), ("inverted", inverted)]


def test_a_mask_of_another_size(place):
    image_id = image_of(place, 0, 3)
    write_mask(place, image_id, 255 * read_mask(place, image_id)[:-1])
    assert found(place) == [("file", image_id)]
    assert f"{image_id}_mask.gif: (height, width) is (239, 360)" in texts(place, "file")[0]


def test_files_that_are_cut_missing_or_misnamed(place):
    cut, alone, orphan = (image_of(place, car, 16) for car in (5, 4, 3))
    photo_of(place, cut).write_bytes(photo_of(place, cut).read_bytes()[:-500])
    mask_of(place, alone).unlink()
    photo_of(place, orphan).unlink()
    (place / "train" / "IMG1234.jpg").write_bytes(b"")
    assert sorted(found(place)) == [
        ("angles", orphan[:-3]),
        *sorted([("file", "IMG1234.jpg"), ("file", f"{orphan}_mask.gif"), ("file", alone), ("file", cut)]),
    ]
    assert any(f"train/{cut}.jpg: truncated" in text for text in texts(place, "file"))


def test_a_photo_of_another_size(place):
    image_id = image_of(place, 0, 3)
    image = cv2.imread(str(photo_of(place, image_id)))
    cv2.imwrite(str(photo_of(place, image_id)), image[:-2])
    write_mask(place, image_id, 255 * read_mask(place, image_id)[:-2])
    assert found(place) == [("size", image_id)]


def test_gray_values_in_a_mask(place):
    image_id = image_of(place, 1, 9)
    mask = 255 * read_mask(place, image_id)
    mask[np.argwhere(mask)[0][0], np.argwhere(mask)[0][1]] = 128
    write_mask(place, image_id, mask)
    assert found(place) == [("gray", image_id)]
    assert texts(place, "gray") == [f"{image_id}_mask.gif: 3 colours"]


def test_a_missing_angle(place):
    image_id = image_of(place, 3, 7)
    photo_of(place, image_id).unlink()
    mask_of(place, image_id).unlink()
    assert found(place) == [("angles", image_id[:-3])]
    assert texts(place, "angles") == ["no photo of angle 07"]


@pytest.mark.parametrize("angle", [1, 5, 11])
def test_swapped_masks_of_two_cars(place, angle):
    one, other = image_of(place, 1, angle), image_of(place, 4, angle)
    first, second = mask_of(place, one).read_bytes(), mask_of(place, other).read_bytes()
    mask_of(place, one).write_bytes(second)
    mask_of(place, other).write_bytes(first)
    misfits = {finding.name: finding.other for finding in audit(open_train(place))[1]["misfit"]}
    assert misfits == {one: other, other: one}


def test_half_a_mask(place):
    image_id = image_of(place, 2, 6)
    mask = read_mask(place, image_id)
    write_mask(place, image_id, 255 * (mask & (np.arange(mask.shape[1]) < np.median(mask.nonzero()[1]))))
    assert ("area", image_id) in found(place)


def test_a_copy_of_a_photo(place):
    one, other = image_of(place, 0, 2), image_of(place, 5, 2)
    brighter = 1.05 * cv2.imread(str(photo_of(place, one)))
    cv2.imwrite(str(photo_of(place, other)), brighter.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])
    assert {("duplicate", other), ("misfit", other)} <= set(found(place))
    assert texts(place, "duplicate")[0].startswith(f"as {one}, but for ")


def test_only_the_cars_asked_for_are_audited(place, tmp_path):
    write_mask(place, image_of(place, 0, 3), np.zeros((5, 5)))
    car = open_train(place).cars[1]
    (tmp_path / "cars.txt").write_text(car)
    options = ["--input", place, "--cars", tmp_path / "cars.txt", "--output", tmp_path / "out"]
    assert "16 photos of 1 cars, 0 faults" in run_script("audit.py", *options).stdout


def test_a_contour_agrees_with_the_photo_that_it_was_drawn_on():
    mask = np.zeros((128, 192), bool)
    cv2.ellipse(mask.view(np.uint8), (96, 64), (60, 30), 0, 0, 360, 1, -1)
    gray = cv2.resize(np.where(mask, 60, 200).astype(np.uint8), (96, 64), interpolation=cv2.INTER_AREA)
    assert edge_agreement(gray, mask) > 0.99
    assert edge_agreement(gray, np.roll(mask, 40, axis=1)) < 0.4
    assert edge_agreement(gray, np.zeros_like(mask)) == 1


def test_deviations_below_the_median_are_robust():
    assert deviations_below([0.9, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.1])[-1] > 10
    assert deviations_below([0.95, 0.95, 0.949]).max() < 1
    assert deviations_below([]).size == 0


def test_the_real_photos_have_no_faults(carvana_data):
    photos = open_train(carvana_data)
    assert set(audit(photos.select(photos.cars[:8]))[1]) <= {"stray", "border", "edges", "area"}
