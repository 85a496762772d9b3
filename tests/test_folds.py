"""Cars are dealt by area, deterministically, and a table that does not fit the data is refused."""

from hashlib import sha256

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carvana.command import FOLDS
from carvana.errors import InputError
from carvana.folds import check_folds, deal_folds, folds_digest, read_folds, write_folds

PIXELS = pd.Series({"e": 10.4, "d": 20.0, "c": 30.0, "b": 30.2, "a": 29.8, "f": 60.0, "g": 70.5})
FOLD_OF = {"e": 0, "d": 1, "a": 2, "b": 0, "c": 1, "f": 2, "g": 0}
TABLE = pd.DataFrame({"car": list("abcd"), "pixels": [1, 2, 3, 4], "fold": [0, 1, 1, 0]})


def test_cars_are_dealt_round_the_table_by_area_and_then_by_name():
    folds = deal_folds(PIXELS, 3)
    assert list(folds.columns) == ["car", "pixels", "fold"]
    assert list(folds["car"]) == list("abcdefg")
    assert dict(zip(folds["car"], folds["fold"], strict=True)) == FOLD_OF
    assert folds["pixels"].dtype == folds["fold"].dtype == "int64"
    assert list(folds["pixels"]) == [30, 30, 30, 20, 10, 60, 70]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=60), st.data())
def test_the_order_of_the_cars_does_not_matter_and_the_folds_are_even(areas, data):
    num_folds = data.draw(st.integers(2, len(areas)))
    pixels = pd.Series(areas, index=[f"car{index:02}" for index in range(len(areas))], dtype=float)
    folds = deal_folds(pixels, num_folds)
    shuffled = data.draw(st.permutations(list(pixels.index)))
    assert deal_folds(pixels[shuffled], num_folds).equals(folds)
    sizes = folds["fold"].value_counts()
    assert len(sizes) == num_folds
    assert sizes.max() - sizes.min() <= 1
    largest = folds.groupby("fold")["pixels"].max()
    assert largest.min() >= folds["pixels"].nlargest(num_folds).min()  # each fold has one of the largest


@pytest.mark.parametrize("num_folds", [0, 1, 8])
def test_a_number_of_folds_that_cannot_be_is_refused(num_folds):
    with pytest.raises(InputError, match=f"{num_folds} folds: with 7 cars, use 2 to 7"):
        deal_folds(PIXELS, num_folds)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folds.csv"
    write_folds(TABLE, path)
    assert path.read_bytes() == b"car,pixels,fold\na,1,0\nb,2,1\nc,3,1\nd,4,0\n"
    assert read_folds(path).to_dict("list") == TABLE.to_dict("list")
    assert [file.name for file in path.parent.iterdir()] == ["folds.csv"]


def test_car_ids_stay_text(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_bytes(b"car,pixels,fold\r\n012345678901,1,0\r\n1e5,2,1\r\nNA,3,1\r\n")
    assert list(read_folds(path)["car"]) == ["012345678901", "1e5", "NA"]


BROKEN = {
    "": "cannot be read",
    "car,fold\na,0\n": r"the columns are car,fold, not car,pixels,fold; src/create_folds\.py",
    "car,pixels,fold\na,1,0\nb,2,1.5\n": r"line 3: fold is '1\.5', not a count",
    "car,pixels,fold\na,1,0\nb,2,-1\n": "line 3: fold is '-1', not a count",
    "car,pixels,fold\na,1,0\nb,2\n": "line 3: fold is '', not a count",
    "car,pixels,fold\na,x,0\nb,2,1\n": "line 2: pixels is 'x', not a count",
    "car,pixels,fold\na,1,0\nb,2,1\na,1,1\nb,2,0\n": "listed twice: a, b",
    'car,pixels,fold\n"a,1,0\n': "cannot be read",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_table_is_refused(tmp_path, text):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(InputError, match=rf"folds\.csv: .*{BROKEN[text]}"):
        read_folds(tmp_path / "folds.csv")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read.*create_folds"):
        read_folds(tmp_path / "absent.csv")


def test_check_keeps_the_present_cars():
    assert check_folds(TABLE, "dba").to_dict("list") == {
        "car": ["a", "b", "d"],
        "pixels": [1, 2, 4],
        "fold": [0, 1, 0],
    }


REFUSED = {
    "a present car missing": ("abxy", [0, 1, 1, 0], "lacks x, y; create"),
    "many present cars missing": ("abstuvwxyz", [0, 1, 1, 0], "lacks s, t, u, v, w and 3 more"),
    "a fold without present cars": ("ad", [0, 1, 1, 0], "fold 1 has none of the 2 cars present"),
    "no car present": ("", [0, 1, 1, 0], "fold 0, 1 has none of the 0 cars"),
    "one fold": ("abcd", [0, 0, 0, 0], "the folds are 0; they must be numbered 0, 1"),
    "a number left out": ("abcd", [0, 2, 2, 0], "the folds are 0, 2; they must be numbered"),
    "counted from one": ("abcd", [1, 2, 2, 1], "the folds are 1, 2; they must be numbered"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_does_not_fit_is_refused(case):
    cars, fold, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        check_folds(TABLE.assign(fold=fold), cars)


def test_the_digest_is_of_cars_and_folds_only(tmp_path):
    digest = folds_digest(TABLE)
    assert digest == sha256(b"a,0\nb,1\nc,1\nd,0\n").hexdigest()
    assert folds_digest(TABLE[::-1].assign(pixels=7)) == digest
    assert folds_digest(TABLE.assign(fold=[0, 1, 1, 1])) != digest
    (tmp_path / "folds.csv").write_bytes(b"car,pixels,fold\r\nd,4,0\r\nc,3,1\r\nb,2,1\r\na,1,0\r\n")
    assert folds_digest(read_folds(tmp_path / "folds.csv")) == digest


def test_the_committed_table():
    folds = read_folds(FOLDS)
    assert len(folds) == 318
    assert sorted(folds["fold"].value_counts()) == [63, 63, 64, 64, 64]
    assert check_folds(folds, folds["car"]).equals(folds)
    assert deal_folds(folds.set_index("car")["pixels"], 5).equals(folds)
    means = folds.groupby("fold")["pixels"].mean()
    assert means.max() / means.min() < 1.01
