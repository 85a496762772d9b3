"""The three scripts that look at a submission, on eight tiny photos: what they print and how they exit."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import check_submission
import draw_overlays
import score_submission
from carvana.errors import InputError
from carvana.images import open_test
from carvana.pictures import CAPTION_HEIGHT
from carvana.rle import rle_encode
from carvana.submission import write_submission

SRC = Path(check_submission.__file__).parent
SIZE = (40, 60)
NAMES = [f"{car}_{angle:02}.jpg" for car in ("a1", "b2") for angle in range(1, 5)]


def mask_of(name: str) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[10:30, 10 + NAMES.index(name) : 45] = True
    return mask


@pytest.fixture
def root(tmp_path):
    """A tiny imitation of the competition's folder; train and test hold the same photos."""
    for part in ("train", "test", "train_masks"):
        (tmp_path / "input" / part).mkdir(parents=True)
    lines = ["img,rle_mask", *(f"{name},1 1" for name in NAMES)]
    (tmp_path / "input" / "sample_submission.csv").write_text("\n".join(lines) + "\n")
    for name in NAMES:
        image_id = name.removesuffix(".jpg")
        gray = np.full((*SIZE, 3), 128, np.uint8)
        for part in ("train", "test"):
            Image.fromarray(gray).save(tmp_path / "input" / part / name)
        Image.fromarray(mask_of(name)).save(tmp_path / "input" / "train_masks" / f"{image_id}_mask.gif")
    return tmp_path / "input"


@pytest.fixture
def perfect(tmp_path):
    path = tmp_path / "perfect.csv.gz"
    write_submission(path, ((name, rle_encode(mask_of(name))) for name in NAMES))
    return path


def run_script(name: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, SRC / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


class TestCheck:
    def test_ok_exits_with_0(self, root, perfect):
        done = run_script("check_submission", perfect, "--input", root, "--size", "40x60")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "OK: 8 rows, named and ordered as in the sample, all runs inside 60 x 40\n"

    def test_faults_exit_with_1(self, root, tmp_path):
        path = tmp_path / "bad.csv"
        write_submission(path, [(name, "1 2 3") for name in NAMES[1:]])
        done = run_script("check_submission", path, "--sample", root / "sample_submission.csv")
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0] == "fault: 7 rows, the sample has 8"
        assert lines[1] == "fault: line 2, a1_02.jpg: 3 numbers do not make pairs of start and length"
        assert lines[-2:] == ["fault: a1_01.jpg is missing", f"NOT OK: {path}"]
        assert "Traceback" not in done.stderr

    def test_warnings_are_no_faults(self, root, tmp_path, capsys):
        path = tmp_path / "empty.csv"
        write_submission(path, [(name, "") for name in NAMES])
        check_submission.main(path, None, root, "40x60")
        printed = capsys.readouterr().out
        assert "warning: line 2, a1_01.jpg: the mask is empty" in printed
        assert "OK: 8 rows" in printed

    @pytest.mark.parametrize("size", ["40", "40x", "0x60", "axb", "40x60x3", "40,60"])
    def test_a_wrong_size_is_refused(self, root, perfect, size):
        with pytest.raises(InputError, match="--size"):
            check_submission.main(perfect, None, root, size)

    def test_no_sample(self, tmp_path, perfect):
        with pytest.raises(InputError, match=r"sample_submission\.csv"):
            check_submission.main(perfect, None, tmp_path)
        with pytest.raises(InputError, match=r"other\.csv"):
            check_submission.main(perfect, tmp_path / "other.csv")


class TestScore:
    @pytest.mark.parametrize("truth", [".", "train_masks"])
    def test_perfect(self, root, perfect, truth, capsys):
        score_submission.main(perfect, root / truth)
        assert "mean Dice 1.000000 over 8 photos; 8 masks are known" in capsys.readouterr().out

    def test_the_worst_come_first(self, root, tmp_path, capsys):
        path = tmp_path / "x.csv"
        shift = {NAMES[5]: 20, NAMES[2]: 3}
        rows = [(name, rle_encode(np.roll(mask_of(name), shift.get(name, 0), axis=0))) for name in NAMES[:6]]
        write_submission(path, rows)
        score_submission.main(path, root)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"mean Dice {(4 + 0.85 + 0) / 6:.6f} over 6 photos; 8 masks are known"
        assert lines[1:3] == [f"0.000000  {NAMES[5]}", f"0.850000  {NAMES[2]}"]
        assert len(lines) == 6

    def test_a_row_without_truth_exits_with_2(self, root, perfect):
        missing = root / "train_masks" / "b2_01_mask.gif"
        missing.unlink()
        done = run_script("score_submission", perfect, "--truth", root)
        assert done.returncode == 2
        assert done.stderr == f"error: {root}: no mask of b2_01.jpg, which {perfect} has a row of\n"

    def test_no_truth_and_no_row(self, root, tmp_path, perfect):
        with pytest.raises(InputError, match="no such folder"):
            score_submission.main(perfect, tmp_path / "nowhere")
        write_submission(tmp_path / "none.csv", [])
        with pytest.raises(InputError, match="no row"):
            score_submission.main(tmp_path / "none.csv", root)


class TestOverlays:
    def test_a_sheet_of_all(self, root, perfect, tmp_path):
        done = run_script("draw_overlays", perfect, "--input", root, "--output", tmp_path / "new", "--columns", 3)
        assert done.returncode == 0, done.stderr
        sheet = cv2.imread(str(tmp_path / "new" / "overlays.jpg"))
        assert sheet.shape == (3 * (320 + CAPTION_HEIGHT), 3 * 480, 3)

    def test_contour_and_tint_are_where_the_mask_is(self):
        image, mask = np.full((*SIZE, 3), 128, np.uint8), mask_of(NAMES[0])
        marked = draw_overlays.mark(image, mask)
        assert (marked[20, 10] == draw_overlays.COLOR).all()
        assert (marked[0, 0] == 128).all()
        inside = marked[20, 27].astype(int)
        assert 128 < inside[0] < 255
        assert (image == 128).all()

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_some_photos(self, root, perfect, seed):
        photos = open_test(root)
        names = draw_overlays.choose_names(perfect, photos, 3, seed)
        assert len(names) == 3
        assert names <= set(NAMES)
        assert names == draw_overlays.choose_names(perfect, photos, 3, seed)
        assert draw_overlays.choose_names(perfect, photos, 99, seed) == set(NAMES)

    def test_evenly_spread(self, root, perfect):
        names = draw_overlays.choose_names(perfect, open_test(root), 2, None)
        assert names == {NAMES[0], NAMES[-1]}

    def test_faults(self, root, perfect, tmp_path):
        write_submission(tmp_path / "other.csv", [("c3_01.jpg", "1 1")])
        with pytest.raises(InputError, match="none of its rows"):
            draw_overlays.main(tmp_path / "other.csv", root)
        write_submission(tmp_path / "large.csv", [(NAMES[0], "2401 1")])
        with pytest.raises(InputError, match="past the last pixel"):
            draw_overlays.main(tmp_path / "large.csv", root)

    def test_written_in_one_piece(self, tmp_path, monkeypatch):
        path = tmp_path / "x.jpg"
        path.write_bytes(b"earlier")
        monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
        with pytest.raises(InputError, match="cannot write"):
            draw_overlays.write_picture(path, np.zeros((4, 4, 3), np.uint8))
        assert path.read_bytes() == b"earlier"
