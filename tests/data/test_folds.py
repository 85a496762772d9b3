"""Cars are dealt by area, deterministically, and a table that does not fit the data is refused."""

import math
import random
import warnings
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carvana.command import FOLDS
from carvana.data.folds import check_folds, deal_folds, folds_digest, read_folds, write_once
from carvana.data.images import open_train
from carvana.errors import InputError

TABLE = pd.DataFrame({"car": list("abcd"), "pixels": [1, 2, 3, 4], "fold": [0, 1, 1, 0]})
HEAD = "car,pixels,fold\na,1,0\n"
BROKEN = {
    "": r"the file is empty; src/create_folds", f'{HEAD}"b,2,0\n': "cannot be read",
    "car,fold\na,0\n": r"the columns are car,fold, not car,pixels,fold; src/create_folds\.py",
    f"{HEAD}b,2,1.5\n": r"line 3: fold is '1\.5', not a count", f"{HEAD}b,2\n": "line 3: fold is '', not a count",
    f"{HEAD}b,-1,1\n": "line 3: pixels is '-1', not a count", f"{HEAD}b,2,1\na,1,1\nb,2,0\n": "listed twice: a, b",
}  # fmt: skip
NO_FIT = {  # cars that are present and their folds
    ("abstuvwxyz", (0, 1, 1, 0)): "lacks s, t, u, v, w and 3 more; create",
    ("ad", (0, 1, 1, 0)): "fold 1 has none of the 2 cars present",
    ("", (0, 1, 1, 0)): "fold 0, 1 has none of the 0 cars",
    ("abcd", (0, 0, 0, 0)): "the folds are 0; they must be numbered 0, 1",
    ("abcd", (0, 2, 2, 0)): "the folds are 0, 2; they must be numbered",
    ("abcd", (1, 2, 2, 1)): "the folds are 1, 2; they must be numbered",
}


@settings(max_examples=30)
@example([1] * 19, 3, random.Random(0))  # pandas' quantiles would leave a stratum one car short
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=40), st.integers(2, 40), st.randoms(use_true_random=False))
def test_each_fold_has_cars_of_all_areas_in_whatever_order_these_come(areas, num_folds, generator):
    num_folds = min(num_folds, len(areas))
    pixels = pd.Series(areas, index=[f"car{index:02}" for index in range(len(areas))], dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of a stratum with fewer cars than folds
        folds = deal_folds(pixels, num_folds)
    assert deal_folds(pixels[generator.sample(list(pixels.index), len(pixels))], num_folds).equals(folds)
    sizes = folds["fold"].value_counts()
    assert (sorted(sizes.index), sizes.max() - sizes.min() <= 2) == ([*range(num_folds)], True)
    assert folds["pixels"].tolist() == areas
    by_area = folds.sort_values(["pixels", "car"], ignore_index=True)["fold"]
    stratum = math.ceil(len(folds) / (len(folds) // num_folds))
    for fold in range(num_folds):
        assert np.diff([-1, *by_area.index[by_area == fold], len(folds)]).max() < 2 * stratum


def test_what_is_written_is_read_and_the_digest_is_of_cars_and_folds_only(tmp_path):
    path = tmp_path / "new" / "folds.csv"
    write_once(TABLE, path, overwrite=False)
    assert path.read_bytes() == b"car,pixels,fold\na,1,0\nb,2,1\nc,3,1\nd,4,0\n"
    assert read_folds(path).to_dict("list") == TABLE.to_dict("list")
    path.write_bytes(b"car,pixels,fold\r\n012345678901,1,0\r\n1e5,2,1\r\nNA,3,1\r\n")
    assert list(read_folds(path)["car"]) == ["012345678901", "1e5", "NA"]
    digest = folds_digest(TABLE)
    assert digest == sha256(b"a,0\nb,1\nc,1\nd,0\n").hexdigest() == folds_digest(TABLE[::-1].assign(pixels=7))
    assert folds_digest(TABLE.assign(fold=[0, 1, 1, 1])) != digest


def test_tables_that_are_broken_or_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "pixels.csv"
    for text, words in BROKEN.items():
        path.write_text(text)
        with pytest.raises(InputError, match=rf"pixels\.csv: .*{words}"):
            read_folds(path)
    assert check_folds(TABLE, "dba").equals(TABLE.loc[[0, 1, 3]].reset_index(drop=True))
    for (present, fold), words in NO_FIT.items():
        with pytest.raises(InputError, match=words):
            check_folds(TABLE.assign(fold=fold), present)
    for num_folds in (0, 1, 5):
        with pytest.raises(InputError, match=f"{num_folds} folds: with 4 cars, use 2 to 4"):
            deal_folds(TABLE.set_index("car")["pixels"], num_folds)


@pytest.mark.parametrize("options", [[], ["--cars", "cars.txt"]])
def test_masks_are_counted_and_a_table_is_replaced_only_when_asked(demo, tmp_path, options):
    photos = open_train(demo / "input")
    cars = photos.cars[2:0:-1] if options else photos.cars
    (tmp_path / "cars.txt").write_text("\n".join(cars))
    means = [np.mean([photos.mask(f"{car}_{angle:02}").sum() for angle in range(1, 17)]) for car in cars]
    command = ["create_folds.py", "--output", "folds.csv", "--input", demo / "input", *options, "--num-folds"]
    result = run_script(*command, 2, cwd=tmp_path)
    assert result.stdout.split()[:3] == ["cars", "mean_pixels", "fold"]
    assert read_folds(tmp_path / "folds.csv").equals(deal_folds(pd.Series(means, cars), 2))
    assert "folds.csv: unchanged" in run_script(*command, 2, cwd=tmp_path).stderr
    if not options:
        refusal = run_script(*command, 3, cwd=tmp_path, check=False)
        line = "error: folds.csv: has other content; runs rely on it, so replace it with --overwrite only"
        assert (refusal.returncode, refusal.stderr.splitlines()[-1]) == (2, line)
        run_script(*command, 3, "--overwrite", cwd=tmp_path)
        assert read_folds(tmp_path / "folds.csv")["fold"].max() == 2


def test_the_committed_table():
    folds = read_folds(FOLDS)
    assert sorted(folds["fold"].value_counts()) == [63, 63, 63, 64, 65]  # 318 cars
    assert check_folds(folds, folds["car"]).equals(folds)
    assert deal_folds(folds.set_index("car")["pixels"], 5).equals(folds)
    means = folds.groupby("fold")["pixels"].mean()
    assert means.max() / means.min() < 1.01


def test_the_real_masks_have_the_committed_areas(carvana_data, tmp_path):
    run_script("create_folds.py", "--input", carvana_data, "--output", tmp_path / "folds.csv")
    areas, committed = (read_folds(path).set_index("car")["pixels"] for path in (tmp_path / "folds.csv", FOLDS))
    assert areas.equals(committed[areas.index])
