"""A CSV is read as it was meant, however a spreadsheet or Kaggle's client has saved it."""

import zipfile
from io import BytesIO

import pytest

from carvana.data.archive import Archive
from carvana.data.folds import read_folds
from carvana.data.tables import read_rows
from carvana.errors import InputError
from carvana.submission.csv import read_sample

ROWS = [["img", "rle_mask"], ["a_01.jpg", "1 1"], ["a_02.jpg", ""]]
TEXT = "img,rle_mask\na_01.jpg,1 1\na_02.jpg,\n"


def zipped(*names: str, text: str = TEXT) -> bytes:
    with zipfile.ZipFile(file := BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, text)
    return file.getvalue()


WAYS = {
    "byte order mark": TEXT.encode("utf-8-sig"), "Windows": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
    "old Mac": TEXT.replace("\n", "\r").encode(), "semicolons": TEXT.replace(",", ";").encode(),
    "tabs, UTF-16": TEXT.replace(",", "\t").encode("utf-16"), "zip": zipped("sample_submission.csv"),
    "quotes, empty lines": b'"img","rle_mask"\n\n"a_01.jpg","1 1"\n"a_02.jpg",""\n,\n\n',
    "zip of a Mac": zipped("csv/", "csv/a.csv", "__MACOSX/._a.csv", text=TEXT.replace(",", ";")),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_save_it_gives_the_same_rows(tmp_path, way):
    assert read_rows(WAYS[way], way, "") == ROWS
    (tmp_path / "sample_submission.csv").write_bytes(WAYS[way])
    assert read_sample(Archive(tmp_path).read_file("sample_submission.csv")) == ["a_01.jpg", "a_02.jpg"]


def test_folds_saved_by_a_spreadsheet_or_zipped(tmp_path):
    text, path = "car;pixels;fold\n012;7;0\nb;8;1\n", tmp_path / "folds.csv"
    for data in (text.encode("utf-8-sig"), zipped("folds.csv", text=text), text.replace(";", "\t").encode("utf-16")):
        path.write_bytes(data)
        assert read_folds(path).to_dict("list") == {"car": ["012", "b"], "pixels": [7, 8], "fold": [0, 1]}


@pytest.mark.parametrize(("data", "words"), [
    (b"", "empty"), (b"\xef\xbb\xbf\r\n", "empty"), (b"\xff\xd8\xff\xe0", "cannot be read as CSV"),
    (b'a,"b\n', "cannot be read as CSV"), (zipped("a.csv", "b.csv"), "holds 2 files, must hold one CSV"),
    (zipped("a.csv")[:60], "cut or corrupt zip"),
], ids=range(6))  # fmt: skip
def test_what_is_no_csv_is_named(data, words):
    with pytest.raises(InputError, match=rf"^x\.csv: .*{words}.*it( again)?$"):
        read_rows(data, "x.csv", "fetch it again")
