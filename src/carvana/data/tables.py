"""CSV files as people have them: saved by a spreadsheet, or still the zip file that Kaggle's client saves as `.csv`."""

import csv
import zipfile
from io import BytesIO

from carvana.data.parts import BROKEN, is_data
from carvana.errors import InputError


def read_rows(data: bytes, name: str, remedy: str) -> list[list[str]]:
    """The rows of a CSV but the empty ones, as they were meant: with a byte order mark, semicolons, tabs or quotes.

    Raises InputError naming `name` and the remedy if it is not text, or empty.
    """
    try:
        text = unzipped(data, name).removeprefix(b"\xef\xbb\xbf")
        text = text.decode("utf-16" if text.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter, strict=True) if any(row)]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{name}: cannot be read as CSV ({error}); {remedy}") from None
    if not rows:
        raise InputError(f"{name}: the file is empty; {remedy}")
    return rows


def unzipped(data: bytes, name: str) -> bytes:
    """The only file in a zip file's bytes; other bytes as they are."""
    if not data.startswith(b"PK\x03\x04"):
        return data
    try:
        with zipfile.ZipFile(BytesIO(data)) as file:
            return file.read(only_member(file, name))
    except BROKEN as error:
        raise InputError(f"{name}: a cut or corrupt zip file ({error}); download it again") from None


def only_member(file: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The CSV in a zip file, without what systems leave beside it. Raises InputError if it is not alone."""
    members = [info for info in file.infolist() if is_data(info.filename) and not info.is_dir()]
    if len(members) != 1:
        raise InputError(f"{name}: holds {len(members)} files, must hold one CSV; unzip it")
    return members[0]
