"""Parts are found and read in every layout that Kaggle, unzip and people make."""

import multiprocessing
import pickle
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from carvana.archive import Archive
from carvana.errors import InputError

CONTENT = {f"c_{angle:02}.jpg": bytes([angle]) * (1000 * angle) for angle in range(1, 5)}


def make_folder(folder: Path, files=CONTENT) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def make_zip(path: Path, files=CONTENT, top="", method=zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        if top:
            file.mkdir(top)
        for name, data in files.items():
            file.writestr(f"{top}{name}", data)
    return path


LAYOUTS = {
    "folder": lambda root: make_folder(root / "train"),
    "unzipped into its own folder": lambda root: make_folder(root / "train" / "train"),
    "zip": lambda root: make_zip(root / "train.zip"),
    "zip with a top folder": lambda root: make_zip(root / "train.zip", top="train/"),
    "zip, stored": lambda root: make_zip(root / "train.zip", top="train/", method=zipfile.ZIP_STORED),
    "folder one level down": lambda root: make_folder(root / "carvana" / "train"),
    "double folder one level down": lambda root: make_folder(root / "carvana" / "train" / "train"),
    "zip one level down": lambda root: make_zip(root / "carvana" / "train.zip", top="train/"),
    "zip in a folder of its name": lambda root: make_zip(root / "train" / "train.zip"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_the_same(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    part = Archive(tmp_path).part("train")
    assert part.names == sorted(CONTENT)
    assert part.duplicates == []
    assert {name: part.read(name) for name in part.names} == CONTENT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_is_a_path_below_the_root(tmp_path, layout):
    lies = LAYOUTS[layout](tmp_path)
    where = Archive(tmp_path).part("train").where("c_01.jpg")
    assert where.startswith(f"{lies}/" if lies.suffix else f"{tmp_path}/")
    assert where.endswith("/c_01.jpg")
    assert Path(where).exists() or ".zip/" in where


def test_where_names_the_zip_and_the_member(tmp_path, monkeypatch):
    make_zip(tmp_path / "input" / "train.zip", top="train/")
    monkeypatch.chdir(tmp_path)
    assert Archive(Path("input")).part("train").where("c_01.jpg") == "input/train.zip/train/c_01.jpg"


def test_folder_wins_over_zip(tmp_path):
    make_zip(tmp_path / "train.zip", {"zipped.jpg": b""})
    make_folder(tmp_path / "train")
    assert Archive(tmp_path).part("train").names == sorted(CONTENT)


def test_an_empty_folder_is_none(tmp_path):
    make_zip(tmp_path / "train.zip")
    (tmp_path / "train" / "train").mkdir(parents=True)
    assert Archive(tmp_path).part("train").names == sorted(CONTENT)


def test_a_zip_left_behind_where_it_was_unzipped_is_no_photo(tmp_path):
    make_zip(make_folder(tmp_path / "train") / "train.zip")
    assert Archive(tmp_path).part("train").names == sorted(CONTENT)


def test_the_root_wins_over_its_sub_folders(tmp_path):
    make_zip(tmp_path / "train.zip")
    make_folder(tmp_path / "demo" / "train", {"demo_01.jpg": b""})
    (tmp_path / "sample.csv").write_bytes(b"root")
    make_zip(tmp_path / "demo" / "sample.csv.zip", {"sample.csv": b"demo"})
    assert Archive(tmp_path).part("train").names == sorted(CONTENT)
    assert Archive(tmp_path).read_file("sample.csv") == b"root"


def test_two_sub_folders_with_the_part_are_refused_by_name(tmp_path):
    make_zip(tmp_path / "one" / "train.zip")
    make_folder(tmp_path / "two" / "train")
    with pytest.raises(InputError, match=r"more than once.*one/train\.zip.*two/train"):
        Archive(tmp_path).part("train")


def test_parts_with_a_longer_name_are_not_mixed_up(tmp_path):
    make_zip(tmp_path / "train_masks.zip")
    make_zip(tmp_path / "train_hq.zip")
    with pytest.raises(InputError, match=r"no train or train\.zip.*input/README\.md"):
        Archive(tmp_path).part("train")


def test_what_systems_leave_behind_is_ignored(tmp_path):
    litter = {"._c_01.jpg": b"", ".DS_Store": b"", "Thumbs.db": b"", "desktop.ini": b""}
    make_zip(tmp_path / "train.zip", CONTENT | litter | {"__MACOSX/train/c_05.jpg": b""})
    make_folder(tmp_path / "test", CONTENT | litter)
    assert Archive(tmp_path).part("train").names == sorted(CONTENT)
    assert Archive(tmp_path).part("test").names == sorted(CONTENT)


def test_duplicates_in_two_sub_folders_or_twice_in_the_zip(tmp_path):
    make_folder(tmp_path / "test" / "a")
    make_folder(tmp_path / "test" / "b", {"c_02.jpg": b"", "d_01.jpg": b""})
    make_zip(tmp_path / "train.zip")
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("c_03.jpg", b"")
    assert Archive(tmp_path).part("test").duplicates == ["c_02.jpg"]
    assert Archive(tmp_path).part("train").duplicates == ["c_03.jpg"]


FILES = {
    "file": lambda root: (root / "sample.csv").write_bytes(b"img"),
    "zip": lambda root: make_zip(root / "sample.csv.zip", {"sample.csv": b"img"}),
    "zip with a top folder": lambda root: make_zip(root / "sample.csv.zip", {"sample.csv": b"img"}, "top/"),
    "one level down": lambda root: make_folder(root / "carvana", {"sample.csv": b"img"}),
    "zip one level down": lambda root: make_zip(root / "carvana" / "sample.csv.zip", {"sample.csv": b"img"}),
    "unzipped into a folder": lambda root: make_folder(root / "sample.csv", {"sample.csv": b"img"}),
}


@pytest.mark.parametrize("layout", FILES)
def test_read_file(tmp_path, layout):
    FILES[layout](tmp_path)
    assert Archive(tmp_path).read_file("sample.csv") == b"img"


def test_read_file_refuses_a_zip_without_it(tmp_path):
    make_zip(tmp_path / "sample.csv.zip", {"other.csv": b""})
    with pytest.raises(InputError, match=r"sample\.csv\.zip/sample\.csv: no such file"):
        Archive(tmp_path).read_file("sample.csv")


def test_missing_and_empty_roots(tmp_path):
    with pytest.raises(InputError, match=r"absent: no such folder.*README"):
        Archive(tmp_path / "absent").part("train")
    with pytest.raises(InputError, match=r"the folder is empty.*train\.zip.*README.*on Kaggle.*first run"):
        Archive(tmp_path).part("train")
    with pytest.raises(InputError, match="no such file"):
        Archive(make_zip(tmp_path / "train.zip").parent).part("train").read("d_01.jpg")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_cut_zip_is_one_clear_line(tmp_path, kept):
    path = make_zip(tmp_path / "train.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(InputError, match=r"train\.zip: cut or corrupt.*download it again") as caught:
        _ = Archive(tmp_path).part("train").names
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("byte", [0, 27, 45])
def test_a_corrupt_member_is_named(tmp_path, method, byte):
    path = make_zip(tmp_path / "train.zip", method=method)
    with zipfile.ZipFile(path) as file:
        offset = file.getinfo("c_02.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[offset + byte] ^= 0x55
    path.write_bytes(data)
    part = Archive(tmp_path).part("train")
    assert part.read("c_01.jpg") == CONTENT["c_01.jpg"]
    if byte == 0:  # the local header's signature is not needed to read the member
        assert part.read("c_02.jpg") == CONTENT["c_02.jpg"]
        return
    with pytest.raises(InputError, match=r"train\.zip/c_02\.jpg: cannot be read.*download it again"):
        part.read("c_02.jpg")


def test_a_file_that_vanished_is_named(tmp_path):
    part = Archive(make_folder(tmp_path / "train").parent).part("train")
    assert part.names
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match=r"train/c_01\.jpg: cannot be read"):
        part.read("c_01.jpg")


MANY = {f"c{index}_01.jpg": bytes([index]) * 20_000 + index.to_bytes(2) for index in range(100)}


def read_all(part) -> bool:
    return all(part.read(name) == data for _ in range(3) for name, data in MANY.items())


def exit_0_if_read(part) -> None:
    sys.exit(not read_all(part))


@pytest.mark.parametrize("opened_before", [True, False])
def test_forked_workers_read_one_zip_at_once(tmp_path, opened_before):
    part = Archive(make_zip(tmp_path / "train.zip", MANY).parent).part("train")
    if opened_before:
        part.read("c0_01.jpg")
    fork = multiprocessing.get_context("fork")  # hands over the part itself, unpickled, as loaders do
    workers = [fork.Process(target=exit_0_if_read, args=(part,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert read_all(part)
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_threads_read_one_zip_at_once(tmp_path):
    part = Archive(make_zip(tmp_path / "train.zip", MANY).parent).part("train")
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_all, [part] * 8))


def test_a_pickled_part_is_a_path(tmp_path):
    part = Archive(make_zip(tmp_path / "train.zip", MANY).parent).part("train")
    assert read_all(part)
    pickled = pickle.dumps(part)
    assert len(pickled) < 1000
    assert read_all(pickle.loads(pickled))
