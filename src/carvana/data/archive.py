"""Reads the competition's files where they lie: in folders, or still inside Kaggle's zip files."""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from carvana.errors import InputError

REMEDY = "input/README.md says what to download and where to put it"
NOT_DATA = {"__MACOSX", "Thumbs.db", "desktop.ini"}
BROKEN = (OSError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, ValueError)


class Archive:
    """The folder with the competition's files.

    Each part is a folder or a zip file in `root`, or one level down as on Kaggle's mount. A folder with files wins over
    a zip file, and `root` wins over its sub-folders.
    """

    def __init__(self, root: Path):
        self.root = Path(root)

    def part(self, name: str) -> "Part":
        """The part called `name`, such as `train`. Raises InputError if it is missing or occurs twice."""
        path = self._find(name, _has_files)
        return FolderPart(path) if path.is_dir() else ZipPart(path)

    def read_file(self, name: str) -> bytes:
        """One file, such as `sample_submission.csv`. Raises InputError if it is missing or occurs twice."""
        path = self._find(name, Path.is_file)
        return path.read_bytes() if path.name == name else ZipPart(path).read(name)

    def _find(self, name: str, exists: Callable[[Path], bool]) -> Path:
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder; {REMEDY}")
        sub_folders = sorted(path for path in self.root.iterdir() if path.is_dir() and _is_data(path.name))
        for folders in ([self.root], sub_folders):
            pairs = [(folder / name, folder / f"{name}.zip") for folder in folders]
            paths = [path if exists(path) else zipped for path, zipped in pairs if exists(path) or zipped.is_file()]
            if len(paths) > 1:
                listed = ", ".join(map(str, paths))
                raise InputError(f"{self.root}: {name} is there more than once ({listed}); give one folder")
            if paths:
                return paths[0]
        expected = f"{name} or {name}.zip, here or one folder down"
        if any(self.root.iterdir()):
            raise InputError(f"{self.root}: no {expected}; {REMEDY}")
        again = "on Kaggle a just attached source may be empty on the first run, so run again"
        raise InputError(f"{self.root}: the folder is empty, looked for {expected}; {REMEDY}; {again}")


class Part:
    """The files of one part of the data by base name, whatever folders they lie in.

    It keeps no file open: each read opens, seeks and closes, so threads and forked or spawned loader workers share it
    without a lock. Pickled, it is a path. `_listing` gives paths inside it, each with what `_content` needs to read it.
    """

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return type(self), (self.path,)

    @cached_property
    def names(self) -> list[str]:
        """Base names, sorted."""
        return sorted(self._members)

    @property
    def duplicates(self) -> list[str]:
        """Base names that occur more than once, in two sub-folders or twice in the zip, sorted."""
        return [name for name in self.names if len(self._members[name]) > 1]

    def where(self, name: str) -> str:
        """The path of a file for messages, such as `input/train.zip/train/x.jpg`."""
        inner, _ = self._members.get(name, [(name, None)])[0]
        return f"{self.path.as_posix()}/{inner}"

    def read(self, name: str) -> bytes:
        """The content of the file with this base name. Raises InputError if it is missing or broken."""
        if name not in self._members:
            raise InputError(f"{self.where(name)}: no such file; {REMEDY}")
        try:
            return self._content(*self._members[name][0])
        except BROKEN as error:
            raise InputError(f"{self.where(name)}: cannot be read ({error}); download it again") from error

    @cached_property
    def _members(self) -> dict[str, list[tuple[str, Any]]]:
        members = {}
        for inner, member in sorted(self._listing(), key=lambda pair: pair[0]):
            if _is_data(inner):
                members.setdefault(PurePosixPath(inner).name, []).append((inner, member))
        return members


class FolderPart(Part):
    """A folder with its sub-folders: unzipping `train.zip` into `train` makes `train/train/x.jpg`."""

    def _listing(self) -> Iterable[tuple[str, None]]:
        own_zip = f"{self.path.name}.zip"  # left behind when unzipped here
        for folder, _, names in os.walk(self.path):
            inside = Path(folder).relative_to(self.path)
            yield from (((inside / name).as_posix(), None) for name in names if name != own_zip)

    def _content(self, inner: str, _: None) -> bytes:
        return (self.path / inner).read_bytes()


class ZipPart(Part):
    """A zip file, its members with or without a top folder."""

    def _listing(self) -> Iterable[tuple[str, zipfile.ZipInfo]]:
        try:
            with zipfile.ZipFile(self.path) as file:
                return [(info.filename, info) for info in file.infolist() if not info.is_dir()]
        except BROKEN as error:
            raise InputError(f"{self.path}: cut or corrupt zip file ({error}); remove and download it again") from error

    def _content(self, _: str, member: zipfile.ZipInfo) -> bytes:
        """Reads at the offset in the index: with `ZipFile` each worker would parse the test's 100,064 names anew."""
        with self.path.open("rb") as file:
            file.seek(member.header_offset)
            name_bytes, extra_bytes = struct.unpack("<26xHH", file.read(30))
            file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
            data = file.read(member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        elif member.compress_type != zipfile.ZIP_STORED:
            raise NotImplementedError(f"compression method {member.compress_type}")
        if zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile("wrong checksum")
        return data


def _is_data(inner: str) -> bool:
    """Whether a path inside a part is more than what operating systems leave behind."""
    return not any(piece in NOT_DATA or piece.startswith(".") for piece in PurePosixPath(inner).parts)


def _has_files(folder: Path) -> bool:
    """Whether a folder can be a part; one that holds only its own zip, such as `train/train.zip`, cannot."""
    return folder.is_dir() and any(_is_data(inner) for inner, _ in FolderPart(folder)._listing())
