"""Parts of the competition's files, such as `train`: a folder or a zip file, read in place."""

import bz2
import lzma
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from carvana.errors import InputError

REMEDY = "input/README.md says what to download and where to put it"
LITTER = re.compile(  # names that systems, browsers and editors leave: .DS_Store, ._x.jpg, ~$x.csv, x.jpg.crdownload
    r"(\.(?!\.?$)|~\$).*|__MACOSX|(eh)?thumbs\.db|desktop\.ini|icon\r|@eaDir|#recycle|\$RECYCLE\.BIN|lost\+found"
    r"|.*(~|\.(part|partial|crdownload|download|aria2|tmp)|:Zone\.Identifier)",
    re.IGNORECASE,
)
INFLATE = {
    zipfile.ZIP_STORED: bytes,
    zipfile.ZIP_DEFLATED: lambda data: zlib.decompress(data, -zlib.MAX_WBITS),
    zipfile.ZIP_BZIP2: bz2.decompress,
    zipfile.ZIP_LZMA: lambda data: zipfile.LZMADecompressor().decompress(data),
}
BROKEN = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, ValueError)


class Part:
    """The files of one part of the data by base name, whatever folders they lie in.

    It keeps no file open: each read opens, seeks and closes, so threads and forked or spawned loader workers share it
    without a lock. Pickled, it is a path. `listing` gives paths inside it, each with what `_content` needs to read it.
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
    def duplicates(self) -> dict[str, str]:
        """Of base names that occur more than once, in two sub-folders or twice in the zip, the second one's path."""
        second = {name: self._members[name][1][0] for name in self.names if len(self._members[name]) > 1}
        return {name: f"{self.path.as_posix()}/{inner}" for name, inner in second.items()}

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
        for inner, member in sorted(self.listing(), key=lambda pair: pair[0]):
            if is_data(inner):
                members.setdefault(PurePosixPath(inner).name, []).append((inner, member))
        return members


class FolderPart(Part):
    """A folder with its sub-folders: unzipping `train.zip` into `train` makes `train/train/x.jpg`."""

    def listing(self) -> Iterable[tuple[str, None]]:
        own_zip = f"{self.path.name}.zip"  # left behind when unzipped here
        for folder, _, names in os.walk(self.path):
            inside = Path(folder).relative_to(self.path)
            yield from (((inside / name).as_posix(), None) for name in names if name != own_zip)

    def _content(self, inner: str, _: None) -> bytes:
        return (self.path / inner).read_bytes()


class ZipPart(Part):
    """A zip file, its members with or without a top folder. It may lie in another: `download.zip/train.zip`."""

    def listing(self) -> Iterable[tuple[str, zipfile.ZipInfo]]:
        try:
            path, start, size = self._extent
            with (
                path.open("rb") as raw,
                mmap.mmap(raw.fileno(), size, access=mmap.ACCESS_READ, offset=start) as window,
                zipfile.ZipFile(window) as file,
            ):
                infos = [(info.filename.replace("\\", "/"), info) for info in file.infolist()]  # as Windows writes
        except BROKEN as error:
            raise InputError(f"{self.path}: cut or corrupt zip file ({error}); remove and download it again") from error
        return [(inner, info) for inner, info in infos if not inner.endswith("/")]

    @cached_property
    def _extent(self) -> tuple[Path, int, int]:
        """The file on the disk, and first byte and number of those that hold this zip, with others before it."""
        outer = outermost(self.path)
        if outer == self.path:
            return outer, 0, outer.stat().st_size
        inner = self.path.relative_to(outer).as_posix()
        info = dict(ZipPart(outer).listing())[inner]
        if info.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{outer}: {inner} is compressed in it and cannot be read in place; unzip {outer.name}")
        with outer.open("rb") as file:
            end = _seek_content(file, info.header_offset) + info.file_size
        start = info.header_offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        return outer, start, end - start

    def _content(self, _: str, member: zipfile.ZipInfo) -> bytes:
        """Reads at the offset in the index: with `ZipFile` each read would parse the test's 100,064 names anew."""
        if member.flag_bits & 1 or member.compress_type not in INFLATE:
            how = "has a password" if member.flag_bits & 1 else f"is compressed by method {member.compress_type}"
            raise InputError(f"{self.path}: {member.filename} {how}, which cannot be read in place; unzip the file")
        path, start, _ = self._extent
        with path.open("rb") as file:
            _seek_content(file, start + member.header_offset)
            data = INFLATE[member.compress_type](file.read(member.compress_size))
        if zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile("wrong checksum")
        return data


def is_data(inner: str) -> bool:
    """Whether a name, or a path inside a part, is more than what systems leave behind."""
    return not any(map(LITTER.fullmatch, PurePosixPath(inner).parts))


def outermost(path: Path) -> Path:
    """The file on the disk in which `path` lies; itself unless it is in a zip file."""
    return next((parent for parent in path.parents if parent.is_file()), path)


def _seek_content(file: BinaryIO, header_offset: int) -> int:
    """Goes to the content of a zip file's member and returns that place."""
    file.seek(header_offset)
    return file.seek(sum(struct.unpack("<26xHH", file.read(30))), os.SEEK_CUR)  # lengths of its name and of more
