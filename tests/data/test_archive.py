"""Parts are found and read in every layout that Kaggle, unzip and people make."""

import multiprocessing
import pickle
import re
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carvana.data.archive import Archive
from carvana.data.parts import is_data
from carvana.errors import InputError

CONTENT = {f"c_{angle:02}.jpg": bytes([angle]) * (1000 * angle) for angle in range(1, 5)}


def make(path: Path, files=CONTENT, top="", method=zipfile.ZIP_DEFLATED) -> Path:
    """A folder, or a zip file if the path ends so; gives the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as file:
            file.mkdir(top or "empty")
            for name, data in files.items():
                file.writestr(f"{top}{name}", data)
    else:
        path.mkdir(exist_ok=True)
        for name, data in files.items():
            (path / name).write_bytes(data)
    return path.parent


def make_download(path: Path, *names: str, method=zipfile.ZIP_STORED) -> Path:
    """The whole download in one zip file, between others the zip files of these names."""
    make(path.with_name("inner.zip"), top="train/")
    inner = {name: path.with_name("inner.zip").read_bytes() for name in names}
    path.with_name("inner.zip").unlink()
    return make(path, {"a.csv": b"a" * 99, **inner, "z.csv": b"z"}, method=method)


def refused(read, *names: str) -> str:
    """The one line of the error."""
    with pytest.raises(InputError, match=r"^.+$") as error:
        read(*names)
    return str(error.value)


WHOLE = "carvana-image-masking-challenge"
LAYOUTS = {  # by where a file lies in them
    "train": lambda root: make(make(root / "train") / "train.zip", {"other.jpg": b""}),  # the folder wins
    "train/train": lambda root: make(root / "train" / "train"),  # as unzip makes it
    "train.zip": lambda root: make(make(root / "train", {}) / "train.zip"),  # beside an empty folder
    "train.zip/a": lambda root: make(root / "train.zip", top="a/", method=zipfile.ZIP_STORED),
    "kaggle/train": lambda root: make(make(root / "kaggle" / "train") / "train" / "train.zip"),  # left behind in it
    "kaggle/train.zip": lambda root: make(root / "kaggle" / "train.zip"),
    "train/train.zip": lambda root: make(root / "train" / "train.zip"),
    f"{WHOLE}.zip/train.zip/train": lambda root: make_download(root / f"{WHOLE}.zip", "test.zip", "train.zip"),
    f"a/{WHOLE} (1).zip/b/train.zip/train": lambda root: make_download(root / "a" / f"{WHOLE} (1).zip", "b/train.zip"),
}


@pytest.mark.parametrize("place", LAYOUTS)
def test_every_layout_reads_the_same(tmp_path, monkeypatch, place):
    LAYOUTS[place](tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    part = Archive(Path("input")).part("train")
    assert (part.names, part.duplicates) == (sorted(CONTENT), {})
    assert {name: part.read(name) for name in part.names} == CONTENT
    assert part.where("c_01.jpg") == f"input/{place}/c_01.jpg"
    assert pickle.loads(pickle.dumps(part)).read("c_02.jpg") == CONTENT["c_02.jpg"]


def test_the_whole_download_is_given_by_name_and_holds_tables_or_is_refused(tmp_path):
    path = make_download(tmp_path / "any.zip", "train.zip") / "any.zip"
    archive = Archive(path)
    assert (archive.part("train").names, archive.read_file("z.csv")) == (sorted(CONTENT), b"z")
    assert "any.zip: no test or test.zip" in refused(archive.part, "test")
    make_download(path, "train.zip", method=zipfile.ZIP_DEFLATED)
    assert f"{path}: train.zip is compressed in it and cannot be read in place; unzip any.zip" in refused(
        lambda: Archive(path).part("train").names
    )
    path.write_bytes(path.read_bytes()[:-40])
    assert "any.zip: cut or corrupt" in refused(archive.part, "train")


def test_what_was_unzipped_hides_a_download_that_cannot_be_read(tmp_path):
    make_download(tmp_path / f"{WHOLE}.zip", "train.zip", method=zipfile.ZIP_DEFLATED)
    make(tmp_path / WHOLE / "train.zip")
    part = Archive(tmp_path).part("train")
    assert (part.path, part.names) == (tmp_path / WHOLE / "train.zip", sorted(CONTENT))


def test_what_systems_and_browsers_leave_is_no_data():
    litter = ".DS_Store ._x.jpg __MACOSX/x.jpg a/Thumbs.db thumbs.db Desktop.ini .ipynb_checkpoints/x-checkpoint.jpg"
    litter += " @eaDir/x.jpg x.jpg.part x.zip.crdownload ~$x.csv x.jpg~ x.jpg:Zone.Identifier $RECYCLE.BIN/x.jpg"
    assert not any(map(is_data, litter.split()))
    assert all(map(is_data, ["x.jpg", "a/x.jpg", "../x.jpg", "./x.jpg", "/a/x.jpg", "a.part.jpg", "@x.jpg", "$x.jpg"]))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_other_systems(tmp_path, method):
    places = dict(zip(CONTENT, ("train\\", "/root/", "../", "C:\\tr\u00e4in\\"), strict=True))
    files = {places[name] + name: data for name, data in CONTENT.items()}
    files |= {"train\\": b"", "__MACOSX\\._c_05.jpg": b""}
    path = make(tmp_path / "train.zip", files, method=method) / "train.zip"
    part = Archive(tmp_path).part("train")
    assert {name: part.read(name) for name in part.names} == CONTENT
    for offset, words in ((8, "has a password"), (10, "is compressed by method")):
        data = bytearray(path.read_bytes())
        data[data.rindex(b"train\\c_01") - 46 + offset] |= 33  # in the index
        path.with_name("test.zip").write_bytes(data)
        assert words in refused(Archive(tmp_path).part("test").read, "c_01.jpg")


def test_a_single_file_is_read_in_every_layout_and_the_root_wins_over_its_sub_folders(tmp_path):
    archive = Archive(tmp_path)
    make(tmp_path / "demo" / "train", {"demo_01.jpg": b""})
    for folder in ("sample.csv", "."):  # sample.csv/sample.csv.zip is what some systems unzip
        make(tmp_path / folder / "sample.csv.zip", {"sample.csv": folder.encode()}, top="top/")
        assert archive.read_file("sample.csv") == folder.encode()
    (tmp_path / "sample.csv" / "sample.csv").write_bytes(b"unzipped")
    (tmp_path / "sample.csv.zip").unlink()
    assert archive.read_file("sample.csv") == b"unzipped"
    make(tmp_path / "two" / "train.zip")
    assert f"more than once ({tmp_path}/demo/train, {tmp_path}/two/train.zip)" in refused(archive.part, "train")
    make(tmp_path / "train.zip")
    assert archive.part("train").names == sorted(CONTENT)


def test_duplicates_in_two_sub_folders_or_twice_in_the_zip_and_what_systems_leave_behind(tmp_path):
    litter = {"._c_01.jpg": b"", ".DS_Store": b"", "Thumbs.db": b"", "desktop.ini": b""}
    make(tmp_path / "test" / "a", CONTENT | litter), make(tmp_path / "test" / "b", {"c_02.jpg": b"", "d_01.jpg": b""})
    make(tmp_path / "train.zip", CONTENT | litter | {"__MACOSX/train/c_05.jpg": b""})
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("c_03.jpg", b"")
    test, train = Archive(tmp_path).part("test"), Archive(tmp_path).part("train")
    assert (test.names, [*test.duplicates]) == ([*sorted(CONTENT), "d_01.jpg"], ["c_02.jpg"])
    assert (train.names, [*train.duplicates]) == (sorted(CONTENT), ["c_03.jpg"])


def test_what_is_missing_is_named_with_the_remedy(tmp_path):
    archive = Archive(tmp_path)
    assert "absent: no such folder; input/README.md" in refused(Archive(tmp_path / "absent").part, "train")
    assert "the folder is empty, looked for train or train.zip" in (line := refused(archive.part, "train"))
    assert "on Kaggle" in line
    make(tmp_path / "train_hq.zip"), make(tmp_path / "sample.csv.zip", {"other.csv": b""}), make(tmp_path / "test")
    assert "no train or train.zip, here or one folder down; input/README.md" in refused(archive.part, "train")
    assert "train_hq.zip/d_01.jpg: no such file" in refused(archive.part("train_hq").read, "d_01.jpg")
    assert "sample.csv.zip/sample.csv: no such file" in refused(archive.read_file, "sample.csv")
    assert (part := archive.part("test")).names
    shutil.rmtree(tmp_path / "test")
    assert "test/c_01.jpg: cannot be read" in refused(part.read, "c_01.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_cut_zip_and_a_corrupt_member_are_one_clear_line(tmp_path, method):
    path = make(tmp_path / "train.zip", method=method) / "train.zip"
    whole, offset = path.read_bytes(), zipfile.ZipFile(path).getinfo("c_02.jpg").header_offset
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        line = refused(Archive(tmp_path).part("train").read, "c_01.jpg")
        assert re.fullmatch(rf"{path}: cut or corrupt.*download it again", line)
    for place in (offset + 27, offset + 45):  # of the name's length, of the content
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        part = Archive(tmp_path).part("train")
        assert part.read("c_01.jpg") == CONTENT["c_01.jpg"]
        assert "train.zip/c_02.jpg: cannot be read" in refused(part.read, "c_02.jpg")


def test_threads_and_forked_processes_read_one_zip_at_once(tmp_path):
    files = {f"c{index}_01.jpg": bytes([index]) * 20_000 + index.to_bytes(2) for index in range(100)}
    part = Archive(make(tmp_path / "train.zip", files)).part("train")
    read_all = lambda part: all(part.read(name) == data for _ in range(3) for name, data in files.items())
    fork = multiprocessing.get_context("fork")  # hands over the part itself, unpickled, as loaders do
    workers = [fork.Process(target=lambda: sys.exit(not read_all(part))) for _ in range(2)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read_all, [part] * 4))
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(pickled := pickle.dumps(part)) < 1000  # a path
    assert read_all(pickle.loads(pickled))
