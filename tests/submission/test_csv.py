"""The CSV is written and read alike in every format, checked, with each fault named, and scored."""

import gzip
import zipfile

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

from carvana.data.rle import rle_encode
from carvana.errors import InputError
from carvana.submission.checker import find_faults, score_lines
from carvana.submission.csv import read_sample, read_submission, write_submission

NAMES = [f"car_{angle:02}.jpg" for angle in range(1, 17)]
ROWS = [(name, f"8 4 14 {3 + place % 2}") for place, name in enumerate(NAMES)]
TEXT = "img,rle_mask\n" + "".join(f"{name},{rle}\n" for name, rle in ROWS)
with_third = lambda rle: [*ROWS[:2], (NAMES[2], rle), *ROWS[3:]]
CUT, WARNING = "cut or not what its suffix says", "warning: line 4, car_03.jpg: the mask is empty\n"
OF_15 = "fault: 16 rows, the sample has 15\nfault: line 2, car_01.jpg: not a name of the sample\nNOT OK: x.csv\n"
READERS = {  # none is of the code under test
    ".csv": lambda path: path.read_text(), ".csv.gz": lambda path: gzip.decompress(path.read_bytes()).decode(),
    **dict.fromkeys((".zip", ".csv.zip"), lambda path: zipfile.ZipFile(path).read("best.csv").decode()),
}  # fmt: skip


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_is_written_whole_or_not_at_all_with_the_same_bytes_at_any_time(tmp_path, suffix, monkeypatch):
    def failing():
        yield from ROWS[:3]
        assert len(list(tmp_path.glob(".best.*.tmp"))) == 1  # rows are taken one by one
        raise KeyboardInterrupt

    path = tmp_path / f"best{suffix}"
    with pytest.raises(KeyboardInterrupt):
        write_submission(path, failing())
    assert list(tmp_path.iterdir()) == []
    write_submission(path, iter(ROWS))
    data = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_submission(path, failing())
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (data, [path])
    assert (READERS[suffix](path), list(read_submission(path))) == (TEXT, ROWS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_submission(path, ROWS)
    assert path.read_bytes() == data
    assert suffix != ".csv.gz" or data[3:8] == bytes(5)  # no time and no name


def write_zip(path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, TEXT)


@pytest.mark.parametrize(("suffix", "how", "fault"), [
    *[(suffix, "missing", "no such file") for suffix in (".csv", ".csv.gz", ".zip")],
    *[(suffix, "missing", r"must end in \.csv, \.csv\.gz, \.zip") for suffix in ("", ".gz", ".txt", "csv")],
    (".csv", "empty", "empty"), (".csv.gz", "empty", "empty"), (".zip", "empty", CUT), (".csv", "noise", "header"),
    *[(suffix, how, CUT) for suffix in (".csv.gz", ".zip") for how in ("cut early", "cut late", "text")],
    (".csv.gz", "checksum", "CRC"), (".zip", "two files", "holds 2 files"),
])  # fmt: skip
def test_a_spoilt_file_is_named_by_the_reader_and_is_a_fault_of_the_check(tmp_path, suffix, how, fault):
    path = tmp_path / f"x{suffix}"
    if how == "two files":
        write_zip(path, "a.csv", "b.csv")
    elif how != "missing":
        write_submission(path, ROWS)
        data = path.read_bytes()
        path.write_bytes({
            "empty": b"", "text": TEXT.encode(), "noise": np.random.default_rng(0).bytes(5000),
            "cut early": data[: len(data) * 3 // 10], "cut late": data[: len(data) * 9 // 10],
            "checksum": data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        }[how])  # fmt: skip
    with pytest.raises(InputError, match=rf"^{path}.*{fault}") as error:
        list(read_submission(path))
    assert find_faults(path, NAMES, (4, 6))[0][-1] == str(error.value)


@pytest.mark.parametrize(("data", "fault"), [
    (b"", "empty"), (b"img,rle_mask\n", "holds no row"), (b"\xff\xd8\xff", "cannot be read as CSV"),
    (b"img,rle_mask\na,1 1\nb,1 1\na,1 1\n", "1 names occur twice"),
    *[(f"{head}\na_01.jpg,1 1\n".encode(), f'line 1: the header is "{head}", must be "img,rle_mask"')
      for head in ("rle_mask,img", "img, rle_mask", "a_01.jpg,1 1")],
    (b"img,rle_mask\na_01.jpg;1\n", '"a_01.jpg;1" has no comma, must be img,rle_mask'),
])  # fmt: skip
def test_what_is_no_sample_but_lines_of_windows_and_zips_of_a_mac_are(tmp_path, data, fault):
    with pytest.raises(InputError, match=rf"^sample_submission\.csv.*{fault}"):
        read_sample(data)
    assert read_sample(TEXT.encode()) == read_sample(TEXT.replace("\n", "\r\n").encode()) == NAMES
    write_zip(tmp_path / "x.zip", "a.csv", "__MACOSX/._a.csv")
    assert list(read_submission(tmp_path / "x.zip")) == ROWS


@pytest.mark.parametrize(("rows", "faults", "warnings"), [
    (ROWS[:5] + ROWS[6:], ["15 rows, the sample has 16", "car_06.jpg is missing"], []),
    ([*ROWS, ("b.jpg", "8 4")], ["17 rows, the sample has 16", "line 18, b.jpg: not a name of the sample"], []),
    ([("car_01.png", "8 4"), *ROWS[1:]], ["line 2, car_01.png: not a name of the sample", "car_01.jpg is missing"], []),
    ([*ROWS[:3], ROWS[1], *ROWS[3:]], ["17 rows, the sample has 16", "line 5, car_02.jpg: already in line 3"], []),
    (ROWS[:2], ["2 rows, the sample has 16", *[f"{name} is missing" for name in NAMES[2:12]], "... and 4 more"], []),
    (ROWS[::-1], [*[f"line {17 - i}, {NAMES[i]}: out of order, line {i + 2} in the sample" for i in range(14, 4, -1)],
                  "... and 5 more"], []),
    *[(with_third(rle), [f"line 4, car_03.jpg: {fault}"], []) for rle, fault in [
        ("8 4 14", "3 numbers do not make pairs of start and length"),
        ("8 4 22 4", 'pair 2, "22 4", ends past the last pixel, 24')]],
    *[(with_third(rle), [], [f"line 4, car_03.jpg: {warning}"]) for rle, warning in [
        ("", "the mask is empty"), ("1 1", "the car covers 4.2% of the photo"),
        ("1 15", "the car covers 62.5% of the photo")]],
    *[(with_third(rle), [], []) for rle in ("1 2", "1 14", "8 2 10 2")],  # the last are runs that touch
])  # fmt: skip
def test_faults_and_warnings_name_line_and_photo(tmp_path, rows, faults, warnings):
    write_submission(tmp_path / "x.csv", rows)
    assert find_faults(tmp_path / "x.csv", NAMES, (4, 6)) == (faults, warnings)


@pytest.mark.parametrize(("rles", "fault"), [
    (["", "", "8 4"], "2 of 3 masks are empty"), (["1 24", "1 23", "8 4"], "2 of 3 masks are full"),
    (["8 4"] * 3, "all 3 masks are alike"), (["", "8 4"], None), (["8 4"], None),
])  # fmt: skip
def test_masks_of_a_broken_network_are_a_fault_unless_they_are_meant(tmp_path, rles, fault):
    names = NAMES[: len(rles)]
    write_submission(tmp_path / "x.csv", zip(names, rles, strict=True))
    write_submission(tmp_path / "sample_submission.csv", ((name, "1 1") for name in names))
    faults, _ = find_faults(tmp_path / "x.csv", names, (4, 6))
    assert faults == ([f"{fault}; --allow-empty if it is meant so"] if fault else [])
    command = ["submission.py", "check", tmp_path / "x.csv", "--input", tmp_path, "--size", "4x6"]
    assert run_script(*command, check=False).returncode == (fault is not None)
    assert run_script(*command, "--allow-empty").stdout.endswith("all runs inside 6 x 4\n")


@pytest.mark.parametrize(("text", "fault"), [
    ("\ufeff" + TEXT, r'line 1: the header begins with a byte order mark: "\ufeffimg,rle_mask", must be'),
    (TEXT.replace(",", ";"), 'line 1: the header is "img;rle_mask", must be'), (TEXT.replace("\n", "\r\n"), None),
    (TEXT.replace("car_01.jpg", "car_01.jpg\u200b"), r"line 2, 'car_01.jpg\u200b': not a name of the sample"),
    (TEXT.replace("car_01.jpg", "car_01.jpg "), "line 2, 'car_01.jpg ': not a name of the sample"),
    ("PK\3\4" + TEXT, "x.csv: is a zip file; name it .zip"),
])  # fmt: skip
def test_what_a_spreadsheet_adds_is_a_fault_that_can_be_seen(tmp_path, text, fault):
    (tmp_path / "x.csv").write_bytes(text.encode())
    faults, _ = find_faults(tmp_path / "x.csv", NAMES, (4, 6))
    assert (fault is None and not faults) or fault in faults[0]


Y, X = np.mgrid[-120:120, -180:180]
DISC = Y**2 + X**2 < 108**2


@pytest.mark.parametrize(("mask", "apart"), [
    (DISC, None), (DISC.T, "240 pixels apart: written column by column"),
    (np.pad(DISC, ((0, 0), (5, 5))), "370 pixels apart: written for another width than 360"),
    (np.random.default_rng(0).random((240, 360)) < 0.3, None),
], ids=["right", "by column", "wider", "noise"])  # fmt: skip
def test_faults_of_layout(tmp_path, mask, apart):
    write_submission(tmp_path / "x.csv", [(NAMES[0], rle_encode(mask))])
    faults, _ = find_faults(tmp_path / "x.csv", NAMES[:1], (240, 360))
    assert faults[:1] == ([f"runs follow each other {apart}"] if apart else [])


@pytest.mark.parametrize(("options", "status", "words"), [
    ([], 0, f"{WARNING}OK: 16 rows, named and ordered as in the sample, all runs inside 6 x 4\n"),
    (["--sample", "of_15.csv"], 1, WARNING + OF_15),
    *[(["--size", size], 2, f"error: --size {size}: ") for size in ("40", "0x60", "axb", "40x60x3")],
    (["--input", "nowhere"], 2, "error: nowhere: no such folder"), (["--sample", "other.csv"], 2, "other.csv"),
])  # fmt: skip
def test_warnings_exit_with_0_faults_with_1_and_what_cannot_be_checked_with_2(tmp_path, options, status, words):
    for name, content in (("sample_submission.csv", ROWS), ("of_15.csv", ROWS[1:]), ("x.csv", with_third(""))):
        write_submission(tmp_path / name, content)
    options = ["--input", ".", "--size", "4x6", *options]
    done = run_script("submission.py", "check", "x.csv", *options, check=False, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout == words if status < 2 else (words in done.stderr and done.stderr.count("\n") == 1)


MASKS = {name: np.pad(np.ones((20, 35 - i), bool), ((10, 10), (10 + i, 15))) for i, name in enumerate(NAMES[:8])}


@pytest.fixture
def truth(tmp_path):
    """A folder with train_masks/."""
    (tmp_path / "train_masks").mkdir()
    for name, mask in MASKS.items():
        Image.fromarray(mask).save(tmp_path / "train_masks" / f"{name[:-4]}_mask.gif")
    return tmp_path


@pytest.mark.parametrize("folder", [".", "train_masks"])
def test_the_mean_score_and_the_worst_photos(truth, folder):
    shift = {NAMES[5]: 20, NAMES[2]: 3}
    write_submission(truth / "x.csv", [(n, rle_encode(np.roll(MASKS[n], shift.get(n, 0), 0))) for n in NAMES[:6]])
    assert run_script("submission.py", "score", truth / "x.csv", "--truth", truth / folder).stdout.splitlines() == [
        f"mean Dice {(4 + 0.85 + 0) / 6:.6f} over 6 photos; 8 masks are known",
        f"0.000000  {NAMES[5]}", f"0.850000  {NAMES[2]}", *[f"1.000000  {NAMES[place]}" for place in (0, 1, 3)],
    ]  # fmt: skip


@pytest.mark.parametrize(("folder", "rows", "words"), [
    (".", [(NAMES[0], "2400 2")], r"line 2, car_01\.jpg: .*past the last pixel, 2400"), (".", [], "holds no row"),
    ("nowhere", ROWS, "no such folder"), (".", ROWS, r"no masks of car_09.*13\.jpg and 3 more, which .*x\.csv has"),
])  # fmt: skip
def test_what_cannot_be_scored(truth, folder, rows, words):
    write_submission(truth / "x.csv", rows)
    with pytest.raises(InputError, match=words):
        score_lines(truth / "x.csv", truth / folder)
