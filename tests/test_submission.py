"""The file is written, read, scored and checked alike in every format; every fault is named."""

import gzip
import zipfile

import numpy as np
import pytest

from carvana.errors import InputError
from carvana.faults import find_faults
from carvana.rle import rle_encode
from carvana.submission import read_sample, read_submission, score, write_submission

SUFFIXES = [".csv", ".csv.gz", ".zip", ".csv.zip"]
SIZE = (4, 6)
NAMES = [f"car_{angle:02}.jpg" for angle in range(1, 17)]
ROWS = [(name, "8 4 14 4") for name in NAMES]
TEXT = "img,rle_mask\n" + "".join(f"{name},{rle}\n" for name, rle in ROWS)


def faults_of(path, rows=ROWS, names=NAMES, size=SIZE):
    write_submission(path, rows)
    return find_faults(path, names, size)[0]


def warnings_of(path, rows, size=SIZE):
    write_submission(path, rows)
    faults, warnings = find_faults(path, [name for name, _ in rows], size)
    assert faults == []
    return warnings


def changed(row: int, rle: str) -> list[tuple[str, str]]:
    return [(name, rle if place == row else own) for place, (name, own) in enumerate(ROWS)]


def text_of(path) -> str:
    if path.name.endswith(".gz"):
        return gzip.decompress(path.read_bytes()).decode()
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            return archive.read(archive.namelist()[0]).decode()
    return path.read_bytes().decode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "submission.csv"


class TestSample:
    def test_names_in_order(self):
        assert read_sample(b"img,rle_mask\nb_01.jpg,1 1\na_01.jpg,1 1\n") == ["b_01.jpg", "a_01.jpg"]

    def test_windows_line_ends(self):
        assert read_sample(b"img,rle_mask\r\nb_01.jpg,1 1\r\n") == ["b_01.jpg"]

    @pytest.mark.parametrize(
        ("data", "fault"),
        [
            (b"", "empty"),
            (b"id,mask\na,1 1\n", "header"),
            (b"img,rle_mask\n", "no row"),
            (b"img,rle_mask\na_01.jpg\n", "line 2"),
            (b"img,rle_mask\na,1 1\nb,1 1\na,1 1\n", "1 names occur twice"),
            (b"\xff\xd8\xff", "header"),
        ],
    )
    def test_anything_else_is_refused(self, data, fault):
        with pytest.raises(InputError, match=fault):
            read_sample(data)


class TestFormats:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_written_and_read_back(self, tmp_path, suffix):
        path = tmp_path / f"best{suffix}"
        assert write_submission(path, iter(ROWS)) == len(ROWS)
        assert text_of(path) == TEXT
        assert list(read_submission(path)) == ROWS
        assert find_faults(path, NAMES, SIZE) == ([], [])
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_equal_rows_give_equal_bytes(self, tmp_path, suffix, monkeypatch):
        first, second = tmp_path / "a" / f"x{suffix}", tmp_path / "b" / f"x{suffix}"
        write_submission(first, ROWS)
        monkeypatch.setattr("time.time", lambda: 2e9)
        write_submission(second, ROWS)
        assert first.read_bytes() == second.read_bytes()

    def test_gzip_header_holds_no_time_and_no_name(self, tmp_path):
        write_submission(tmp_path / "x.csv.gz", ROWS)
        assert (tmp_path / "x.csv.gz").read_bytes()[3:8] == bytes(5)

    def test_zip_holds_one_csv_of_a_fixed_date(self, tmp_path):
        for name in ("x.zip", "x.csv.zip"):
            write_submission(tmp_path / name, ROWS)
            with zipfile.ZipFile(tmp_path / name) as archive:
                (member,) = archive.infolist()
            assert (member.filename, member.date_time) == ("x.csv", (1980, 1, 1, 0, 0, 0))

    @pytest.mark.parametrize("name", ["x.gz", "x.txt", "x", "csv"])
    def test_another_suffix_is_refused(self, tmp_path, name):
        with pytest.raises(InputError, match=r"must end in \.csv, \.csv\.gz, \.zip"):
            write_submission(tmp_path / name, ROWS)
        assert "must end in" in find_faults(tmp_path / name, NAMES)[0][0]
        assert list(tmp_path.iterdir()) == []

    def test_rows_are_taken_one_by_one(self, path):
        taken = []
        write_submission(path, (taken.append(row) or row for row in ROWS))
        rows = read_submission(path)
        assert next(rows) == taken[0]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_what_was_there(self, tmp_path, suffix, error):
        def failing():
            yield from ROWS[:3]
            raise error

        path = tmp_path / f"x{suffix}"
        with pytest.raises(error):
            write_submission(path, failing())
        assert list(tmp_path.iterdir()) == []
        write_submission(path, ROWS)
        with pytest.raises(error):
            write_submission(path, failing())
        assert text_of(path) == TEXT
        assert list(tmp_path.iterdir()) == [path]


class TestBrokenFiles:
    """One clear fault, from the check as a line and from the reader as an InputError."""

    def assert_fault(self, path, text):
        faults, _ = find_faults(path, NAMES, SIZE)
        assert text in faults[-1]
        assert str(path) in faults[-1]
        with pytest.raises(InputError, match=path.name):
            list(read_submission(path))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_missing(self, tmp_path, suffix):
        self.assert_fault(tmp_path / f"x{suffix}", "no such file")

    @pytest.mark.parametrize(("suffix", "text"), [(".csv", "empty"), (".csv.gz", "empty"), (".zip", "cut or not")])
    def test_empty(self, tmp_path, suffix, text):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"")
        self.assert_fault(path, text)

    @pytest.mark.parametrize("suffix", [".csv.gz", ".zip"])
    @pytest.mark.parametrize("kept", [0.3, 0.9])
    def test_cut(self, tmp_path, suffix, kept):
        path = tmp_path / f"x{suffix}"
        write_submission(path, ROWS)
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        self.assert_fault(path, "cut or not what its suffix says")

    @pytest.mark.parametrize("suffix", [".csv.gz", ".zip"])
    def test_plain_text_under_a_compressed_name(self, tmp_path, suffix):
        path = tmp_path / f"x{suffix}"
        path.write_text(TEXT)
        self.assert_fault(path, "cut or not what its suffix says")

    def test_wrong_checksum(self, tmp_path):
        path = tmp_path / "x.csv.gz"
        write_submission(path, ROWS)
        data = bytearray(path.read_bytes())
        data[-8] ^= 1
        path.write_bytes(data)
        self.assert_fault(path, "CRC")

    def test_zip_of_two_files(self, tmp_path):
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", TEXT)
            archive.writestr("b.csv", TEXT)
        self.assert_fault(path, "holds 2 files")

    def test_zip_made_on_a_mac(self, tmp_path):
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", TEXT)
            archive.writestr("__MACOSX/._a.csv", "")
        assert find_faults(path, NAMES, SIZE) == ([], [])

    @pytest.mark.parametrize("header", ["id,mask", "rle_mask,img", "img, rle_mask", "car_01.jpg,1 1", ""])
    def test_another_header(self, path, header):
        path.write_text(TEXT.replace("img,rle_mask", header))
        self.assert_fault(path, f'line 1: the header is "{header}", must be "img,rle_mask"')

    def test_a_row_without_comma(self, path):
        path.write_text(TEXT.replace("car_03.jpg,", "car_03.jpg;"))
        self.assert_fault(path, 'line 4: "car_03.jpg;8 4 14 4" has no comma')

    def test_a_picture(self, path):
        path.write_bytes(np.random.default_rng(0).bytes(5000))
        self.assert_fault(path, "header")

    def test_windows_line_ends_are_read(self, path):
        path.write_bytes(TEXT.replace("\n", "\r\n").encode())
        assert find_faults(path, NAMES, SIZE) == ([], [])


class TestNames:
    def test_a_missing_row(self, path):
        assert faults_of(path, ROWS[:5] + ROWS[6:]) == [
            "15 rows, the sample has 16",
            "car_06.jpg is missing",
        ]

    def test_a_file_that_ends_early(self, path):
        faults = faults_of(path, ROWS[:2])
        assert faults[:2] == ["2 rows, the sample has 16", "car_03.jpg is missing"]
        assert faults[-1] == "... and 4 more"

    def test_an_unknown_name(self, path):
        assert faults_of(path, [*ROWS, ("bus_01.jpg", "8 4")]) == [
            "17 rows, the sample has 16",
            "line 18, bus_01.jpg: not a name of the sample",
        ]

    def test_a_misspelt_name(self, path):
        assert faults_of(path, [("car_01.png", "8 4"), *ROWS[1:]]) == [
            "line 2, car_01.png: not a name of the sample",
            "car_01.jpg is missing",
        ]

    def test_a_name_twice(self, path):
        assert faults_of(path, [*ROWS[:3], ROWS[1], *ROWS[3:]]) == [
            "17 rows, the sample has 16",
            "line 5, car_02.jpg: already in line 3",
        ]

    def test_two_rows_swapped(self, path):
        assert faults_of(path, [ROWS[1], ROWS[0], *ROWS[2:]]) == [
            "line 3, car_01.jpg: out of order, line 2 in the sample"
        ]

    def test_reversed_rows_are_listed_up_to_ten(self, path):
        faults = faults_of(path, ROWS[::-1])
        assert len(faults) == 11
        assert faults[-1] == "... and 5 more"


class TestRuns:
    @pytest.mark.parametrize(
        ("rle", "fault"),
        [
            ("8 4 14", "3 numbers do not make pairs of start and length"),
            ("8 4 14 4.0", "holds something else than whole numbers and spaces"),
            ('"8 4"', "holds something else than whole numbers and spaces"),
            ("8 4,14 4", "holds something else than whole numbers and spaces"),
            ("0 9", 'pair 1, "0 9", starts before pixel 1'),
            ("8 4 14 0", 'pair 2, "14 0", is empty'),
            ("14 4 8 4", 'pair 2, "8 4", does not start after the pair before it'),
            ("8 7 14 4", 'pair 2, "14 4", overlaps the pair before it'),
            ("8 4 22 4", 'pair 2, "22 4", ends past the last pixel, 24'),
        ],
    )
    def test_faults_name_line_and_photo(self, path, rle, fault):
        assert faults_of(path, changed(2, rle)) == [f"line 4, car_03.jpg: {fault}"]

    def test_runs_that_touch_are_fine(self, path):
        assert faults_of(path, changed(2, "8 2 10 2")) == []

    def test_the_photos_size_is_1280_by_1918_unless_told(self, path):
        assert 1280 * 1918 == 2455040
        write_submission(path, [(NAMES[0], "1 736512")])
        assert find_faults(path, NAMES[:1]) == ([], [])
        write_submission(path, [(NAMES[0], "1 736512 2455040 2")])
        assert "ends past the last pixel, 2455040" in find_faults(path, NAMES[:1])[0][0]

    @pytest.mark.parametrize(
        ("rle", "warning"),
        [
            ("", "the mask is empty"),
            ("1 24", "the car covers 100.0% of the photo"),
            ("1 15", "the car covers 62.5% of the photo"),
            ("1 1", "the car covers 4.2% of the photo"),
        ],
    )
    def test_odd_areas_are_warnings(self, path, rle, warning):
        assert warnings_of(path, changed(2, rle)) == [f"line 4, car_03.jpg: {warning}"]

    def test_plausible_areas_are_not(self, path):
        assert warnings_of(path, changed(2, "1 2")) == []
        assert warnings_of(path, changed(2, "1 14")) == []

    def test_warnings_are_listed_up_to_ten(self, path):
        warnings = warnings_of(path, [(name, "") for name in NAMES])
        assert len(warnings) == 11
        assert warnings[-1] == "... and 6 more"


def disc(height=240, width=360) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.45 * height) ** 2


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (disc(), None),
        (disc().T, "runs follow each other 240 pixels apart: written column by column"),
        (np.pad(disc(), ((0, 0), (5, 5))), "370 pixels apart: written for another width than 360"),
        (disc()[:, 40:-40], "280 pixels apart: written for another width than 360"),
        (np.random.default_rng(0).random((240, 360)) < 0.3, None),
    ],
    ids=["right", "by column", "wider", "narrower", "noise"],
)
def test_layout(path, mask, fault):
    faults = faults_of(path, [(NAMES[0], rle_encode(mask))], NAMES[:1], (240, 360))
    assert faults == [] if fault is None else fault in faults[0]


def test_rows_can_be_watched(path):
    seen = []
    write_submission(path, ROWS)
    find_faults(path, NAMES, SIZE, watch=lambda rows: (seen.append(row) or row for row in rows))
    assert len(seen) == len(ROWS)


class TestScore:
    MASK = np.array([[0, 1, 1, 0], [0, 1, 1, 0]], bool)

    def score(self, path, rle, mask=MASK):
        write_submission(path, [("a_01.jpg", rle)])
        ((name, dice),) = score(path, lambda name: mask)
        assert name == "a_01.jpg"
        return dice

    def test_ideal_and_worst(self, path):
        assert self.score(path, "2 2 6 2") == 1
        assert self.score(path, "1 1 4 2 8 1") == 0
        assert self.score(path, "") == 0

    def test_both_empty(self, path):
        assert self.score(path, "", np.zeros((2, 4), bool)) == 1

    def test_a_half_and_two_thirds(self, path):
        assert self.score(path, "1 2 5 2") == 0.5
        assert self.score(path, "2 2") == pytest.approx(2 / 3)

    def test_a_row_that_is_no_mask(self, path):
        with pytest.raises(InputError, match=r"line 2, a_01\.jpg: .*past the last pixel, 8"):
            self.score(path, "8 2")
