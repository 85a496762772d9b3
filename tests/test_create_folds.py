"""The script deals the same table from masks as from counted pixels, and replaces none unasked."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carvana.command import FOLDS, REPOSITORY
from carvana.errors import InputError
from carvana.folds import read_folds
from create_folds import main

AREAS = {
    "a": (40, 41),
    "b": (7, 8),
    "c": (20, 30),
    "d": (90, 91),
    "e": (50, 1),
    "f": (60, 60),
}  # of two angles


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


@pytest.fixture
def data(tmp_path) -> Path:
    """Zips as on Kaggle, of six cars with two photos each, and `pixels.csv`."""
    counts = {f"{car}_{angle:02}": area for car, both in AREAS.items() for angle, area in enumerate(both, 1)}
    with (
        zipfile.ZipFile(tmp_path / "train.zip", "w") as photos,
        zipfile.ZipFile(tmp_path / "train_masks.zip", "w") as masks,
    ):
        for image_id, count in counts.items():
            mask = (np.arange(100) < count).reshape(10, 10)
            photos.writestr(f"train/{image_id}.jpg", encoded(np.zeros((10, 10, 3), np.uint8), "jpeg"))
            masks.writestr(f"train_masks/{image_id}_mask.gif", encoded(mask.astype(np.uint8), "gif"))
    table = pd.DataFrame({"img": [f"{image_id}.jpg" for image_id in counts], "pixels": counts.values()})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "pixels.csv", index=False)
    return tmp_path


def test_masks_and_pixel_counts_deal_the_same_table(data, capsys):
    main(input=data, num_folds=3, output=data / "masks.csv")
    main(input=data / "absent", num_folds=3, output=data / "counts.csv", mask_pixels=data / "pixels.csv")
    text = (data / "masks.csv").read_text()
    assert text == (data / "counts.csv").read_text()
    assert text == "car,pixels,fold\na,40,0\nb,8,0\nc,25,1\nd,90,2\ne,26,2\nf,60,1\n"
    assert capsys.readouterr().out.split()[:6] == ["cars", "mean_pixels", "fold", "0", "2", "24"]


def test_some_cars(data):
    (data / "cars.txt").write_text("f\nb\n")
    main(input=data, num_folds=2, output=data / "masks.csv", cars=data / "cars.txt")
    pixels = data / "pixels.csv"
    main(num_folds=2, output=data / "counts.csv", cars=data / "cars.txt", mask_pixels=pixels)
    assert (data / "masks.csv").read_text() == "car,pixels,fold\nb,8,0\nf,60,1\n"
    assert (data / "masks.csv").read_text() == (data / "counts.csv").read_text()
    (data / "cars.txt").write_text("f\nx\n")
    with pytest.raises(InputError, match=r"pixels\.csv: no photo of x; check .*cars\.txt"):
        main(num_folds=2, output=data / "counts.csv", cars=data / "cars.txt", mask_pixels=pixels)


def test_another_table_is_replaced_only_when_asked(data, capsys):
    output = data / "folds.csv"
    main(input=data, num_folds=2, output=output)
    main(input=data, num_folds=2, output=output)
    assert "folds.csv: unchanged" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"folds\.csv: has other content.*--overwrite"):
        main(input=data, num_folds=3, output=output)
    assert read_folds(output)["fold"].max() == 1
    main(input=data, num_folds=3, output=output, overwrite=True)
    assert read_folds(output)["fold"].max() == 2


def test_more_folds_than_cars_are_refused(data):
    with pytest.raises(InputError, match="7 folds: with 6 cars, use 2 to 6"):
        main(input=data, num_folds=7, output=data / "folds.csv")
    assert not (data / "folds.csv").exists()


COUNTS = {
    "img,area\na_01.jpg,1\n": "must have the columns img,pixels",
    "img,pixels\na_01.jpg,1\na_01.jpg,1\n": "name each photo once",
    "img,pixels\na_01.jpg,1.5\n": "whole numbers",
    "img,pixels\na_01.jpg,-1\n": "whole numbers",
    "img,pixels\na_01.jpg,\n": "whole numbers",
    "img,pixels\na.jpg,1\n": "not of the form <car>_<angle>",
    "": "cannot be read",
}


@pytest.mark.parametrize("text", COUNTS)
def test_a_table_of_other_things_is_refused(tmp_path, text):
    (tmp_path / "pixels.csv").write_text(text)
    with pytest.raises(InputError, match=COUNTS[text]):
        main(output=tmp_path / "folds.csv", mask_pixels=tmp_path / "pixels.csv")


def test_a_missing_mask_stops_it(data):
    with zipfile.ZipFile(data / "train.zip", "a") as photos:
        photos.writestr("train/g_01.jpg", b"")
    with pytest.raises(InputError, match=r"g_01_mask\.gif: missing"):
        main(input=data, output=data / "folds.csv")


def test_the_command_runs_from_any_directory_and_fails_with_status_2(data):
    command = [
        sys.executable,
        REPOSITORY / "src" / "create_folds.py",
        "--input",
        ".",
        "--output",
        "new/folds.csv",
    ]
    good = subprocess.run([*command, "--num-folds", "2"], cwd=data, capture_output=True, text=True)
    assert good.returncode == 0
    assert len(read_folds(data / "new" / "folds.csv")) == 6
    bad = subprocess.run([*command, "--num-folds", "3"], cwd=data, capture_output=True, text=True)
    assert bad.returncode == 2
    assert "error: new/folds.csv: has other content" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_the_real_masks_have_the_committed_areas(carvana_data, tmp_path):
    main(input=carvana_data, output=tmp_path / "folds.csv")
    read = read_folds(tmp_path / "folds.csv").set_index("car")["pixels"]
    assert read.equals(read_folds(FOLDS).set_index("car")["pixels"][read.index])
