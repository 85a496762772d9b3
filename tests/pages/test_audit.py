"""Faults planted in a drawn set are found and named; a clean one has none."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from PIL import Image

from carvana.data.images import open_train
from carvana.pages.audit import audit_photos, draw_finding
from carvana.pages.findings import Finding
from carvana.pages.pictures import BLUE


@pytest.fixture
def cars(demo, tmp_path) -> list[list[Path]]:
    """The photos of a copy of the drawn set to plant faults in, by car and angle, both from 0."""
    photos = sorted((shutil.copytree(demo / "input", tmp_path / "input") / "train").iterdir())
    return [photos[first : first + 16] for first in range(0, 64, 16)]


def mask_of(photo: Path) -> Path:
    return photo.parents[1] / "train_masks" / f"{photo.stem}_mask.gif"


def read(photo: Path) -> np.ndarray:
    return np.array(Image.open(mask_of(photo))) > 0


def write(photo: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(mask_of(photo))


def find(cars: list[list[Path]]) -> dict[str, dict[str, Finding]]:
    """Findings by kind and name."""
    by_kind = audit_photos(open_train(cars[0][0].parents[1])).findings
    return {kind: {finding.name: finding for finding in findings} for kind, findings in by_kind.items()}


def test_a_clean_set_has_no_finding(demo, tmp_path):
    result = run_script("audit.py", "--input", demo / "input", "--output", tmp_path)
    assert result.stdout == f"{tmp_path / 'audit.html'}: 64 photos of 4 cars, 0 faults, 0 warnings\n"
    assert "Nothing was found." in (tmp_path / "audit.html").read_text()
    table = pd.read_csv(tmp_path / "audit.csv", keep_default_na=False)
    assert (table[["faults", "warnings", "components"]] == ["", "", 1]).all(axis=None)
    assert table["car_share"].between(0.05, 0.5).sum() == table["edge_agreement"].between(0.75, 1).sum() == 64


def test_faults_end_with_status_1_and_are_drawn(cars, tmp_path):
    (inverted, stray), mask = (cars[2][4], cars[3][0]), read(cars[3][0])
    mask[3:5, 3:5] = True
    write(inverted, ~read(inverted))
    write(stray, mask)
    result = run_script("audit.py", "--input", tmp_path / "input", "--output", tmp_path / "out", check=False)
    assert (result.returncode, result.stdout.splitlines()) == (1, [
        f"fault: Inverted masks: 1: {inverted.stem}",
        f"warning: Stray parts: 1: {stray.stem}",
        f"{tmp_path / 'out' / 'audit.html'}: 64 photos of 4 cars, 1 faults, 1 warnings",
    ])  # fmt: skip
    page = (tmp_path / "out" / "audit.html").read_text()
    drawn = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="(\w+) with the contour of its mask"', page)
    assert drawn == [inverted.stem, stray.stem]
    table = pd.read_csv(tmp_path / "out" / "audit.csv", keep_default_na=False, index_col="image_id")
    assert table.loc[inverted.stem, "faults"].startswith(f"inverted: {inverted.stem}_mask.gif")
    assert table.loc[stray.stem, ["warnings", "components"]].tolist() == ["stray: 1, the largest of 4 pixels", 2]


def test_faulty_files_and_masks_are_named(cars):
    gray, empty, low, alone, maskless, cut = (cars[n % 4][n] for n in range(6))
    soft = 255 * read(gray)
    soft[tuple(np.argwhere(soft)[0])] = 128
    write(gray, soft)
    write(empty, 0 * soft)
    write(low, read(low)[:-1])
    alone.unlink()
    mask_of(maskless).unlink()
    cut.write_bytes(cut.read_bytes()[:-500])
    cut.with_name("IMG1234.jpg").write_bytes(b"")
    texts = {kind: {name: finding.text for name, finding in named.items()} for kind, named in find(cars).items()}
    files = texts.pop("file")
    assert files.keys() == {"IMG1234.jpg", mask_of(alone).name, low.stem, maskless.stem, cut.stem}
    assert f"train/{cut.name}: truncated" in files[cut.stem]
    assert f"{mask_of(low).name}: (height, width) is (95, 144)" in files[low.stem]
    assert texts == {
        "empty": {empty.stem: f"{mask_of(empty).name}: no pixel is car"},
        "gray": {gray.stem: f"{mask_of(gray).name}: 3 colours"},
        "angles": {alone.stem[:-3]: "no photo of angle 04"},
    }


def test_swapped_masks_of_two_cars_half_a_mask_and_a_copy_of_a_photo(cars):
    swapped, half, original, copy = {}, cars[1][5], cars[1][1], cars[3][1]
    for first, second in ((cars[0][angle], cars[2][angle]) for angle in (0, 4, 10)):
        masks = read(first), read(second)
        write(first, masks[1])
        write(second, masks[0])
        swapped |= {first.stem: second.stem, second.stem: first.stem}
    write(half, read(half) & (np.arange(144) < np.median(read(half).nonzero()[1])))
    brighter = (1.05 * cv2.imread(str(original))).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(copy), brighter, [cv2.IMWRITE_JPEG_QUALITY, 70])
    findings = find(cars)
    misfits = {name: finding.other for name, finding in findings["misfit"].items()}
    assert {name: misfits.pop(name) for name in swapped} == swapped
    assert list(misfits) == [copy.stem]
    assert half.stem in findings["area"]
    ((name, duplicate),) = findings["duplicate"].items()
    assert (name, duplicate.other) == (copy.stem, original.stem)
    photos, misfit = open_train(copy.parents[1]), findings["misfit"][cars[0][0].stem]
    single, pair, both = (draw_finding(photos, f) for f in (findings["area"][half.stem], duplicate, misfit))
    assert (pair.shape[0] > 1.9 * single.shape[0], pair.shape[1]) == (True, single.shape[1])
    assert [(picture == BLUE).all(-1).any() for picture in (single, pair, both)] == [False, False, True]


def test_the_real_photos_have_no_faults(carvana_data):
    photos = open_train(carvana_data)
    assert audit_photos(photos.select(photos.cars[:8])).findings.keys() <= {"stray", "area"}
