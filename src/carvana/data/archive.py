"""Where the competition's files lie: in folders, in Kaggle's zip files, or in the zip file of the whole download."""

from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

from carvana.data.parts import REMEDY, FolderPart, Part, ZipPart, is_data, outermost
from carvana.errors import InputError

DOWNLOAD = "carvana-image-masking-challenge*.zip"  # what "Download All" gives, with the zip files inside


class Archive:
    """The folder with the competition's files, or the zip file of the whole download.

    Each part is a folder or a zip file in `root`, or one level down as on Kaggle's mount, or in the whole download. A
    folder with files wins over a zip file, `root` over its sub-folders, and all of them over the whole download.
    """

    def __init__(self, root: Path):
        self.root = Path(root)

    def part(self, name: str) -> Part:
        """The part called `name`, such as `train`. Raises InputError if it is missing or occurs twice."""
        path = self._find(name, _has_files)
        return FolderPart(path) if path.is_dir() else ZipPart(path)

    def read_file(self, name: str) -> bytes:
        """One file, such as `sample_submission.csv`. Raises InputError if it is missing or occurs twice."""
        path = self._find(name, Path.is_file)
        if path.name != name:
            return ZipPart(path).read(name)
        return path.read_bytes() if path.is_file() else ZipPart(outermost(path)).read(name)

    def has_file(self, name: str) -> bool:
        """Whether `read_file` finds it. Raises InputError if it occurs twice, or if there is no such folder."""
        return self._search(name, Path.is_file) is not None

    def _find(self, name: str, exists: Callable[[Path], bool]) -> Path:
        if path := self._search(name, exists):
            return path
        expected = f"{name} or {name}.zip, here or one folder down"
        if self.root.is_file() or any(self.root.iterdir()):
            raise InputError(f"{self.root}: no {expected}; {REMEDY}")
        again = "on Kaggle a just attached source may be empty on the first run, so run again"
        raise InputError(f"{self.root}: the folder is empty, looked for {expected}; {REMEDY}; {again}")

    def _search(self, name: str, exists: Callable[[Path], bool]) -> Path | None:
        if not self.root.exists():
            raise InputError(f"{self.root}: no such folder; {REMEDY}")
        entries = [self.root] if self.root.is_file() else sorted(self.root.iterdir())
        sub_folders = [path for path in entries if path.is_dir() and is_data(path.name)]
        for find, folders in product((_find_loose, _find_downloaded), ([self.root], sub_folders)):
            if len(paths := find(folders, name, exists)) > 1:
                listed = ", ".join(map(str, paths))
                raise InputError(f"{self.root}: {name} is there more than once ({listed}); give one folder")
            if paths:
                return paths[0]
        return None


def _find_loose(folders: list[Path], name: str, exists: Callable[[Path], bool]) -> list[Path]:
    pairs = [(folder / name, folder / f"{name}.zip") for folder in folders]
    return [path if is_loose else zipped for path, zipped in pairs if (is_loose := exists(path)) or zipped.is_file()]


def _find_downloaded(folders: list[Path], name: str, _: Callable) -> list[Path]:
    """Inside whole downloads, of which the only folder may be one."""
    downloads = [[folder] if folder.is_file() else sorted(folder.glob(DOWNLOAD)) for folder in folders]
    parts, names = map(ZipPart, chain(*downloads)), (name, f"{name}.zip")
    return [Path(part.where(inner)) for part in parts for inner in names if inner in part.names]


def _has_files(folder: Path) -> bool:
    """Whether a folder can be a part; one that holds only its own zip, such as `train/train.zip`, cannot."""
    return folder.is_dir() and any(is_data(inner) for inner, _ in FolderPart(folder).listing())
