"""A Kaggle kernel: `src/` and a short kernel in one script or notebook, its metadata, and what Kaggle would refuse.

The same commit and settings give the same bytes.
"""

import base64
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))  # before all imports of the library: every module here imports this one

from carvana.command import FOLDS, REPOSITORY  # noqa: E402
from carvana.errors import InputError  # noqa: E402
from carvana.log import replacing, write_json  # noqa: E402

COMPETITION = "carvana-image-masking-challenge"
LIMIT = 1_000_000  # bytes of a script; Kaggle's server refuses more, its client does not check
TITLE = (5, 50)  # characters
BUILD = HERE / "build"
ACCELERATOR = "NvidiaTeslaT4"  # a session has two of them
PACKED = (".py", ".yaml", ".html", ".js", ".txt")
EXTRA = {"selftest": ("benchmarks", "tests/gpu")}  # packed only into this kind of kernel
LEFT_OUT = REPOSITORY / "src" / "demo"  # the drawn cars
EPOCH = (1980, 1, 1, 0, 0, 0)  # of zip files: the same sources give the same bytes


@dataclass(frozen=True)
class Kernel:
    """What is built. `sources` are kernels, `owner/slug`, whose output is attached."""

    kind: str  # train, submit, merge or selftest
    title: str
    owner: str
    settings: dict
    gpu: bool = True
    internet: bool = False
    notebook: bool = False
    sources: Sequence[str] = ()
    datasets: Sequence[str] = ()
    cars: Path | None = None
    folds_file: Path = FOLDS
    accelerator: str = ACCELERATOR

    @property
    def extra(self) -> Sequence[str]:
        """Folders that are packed beside the library."""
        return EXTRA.get(self.kind, ())

    @property
    def slug(self) -> str:
        """As Kaggle derives it from the title."""
        return slugify(self.title)

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.slug}"

    @property
    def code_file(self) -> str:
        return f"{self.slug}.{'ipynb' if self.notebook else 'py'}"

    def metadata(self) -> dict:
        """kernel-metadata.json. The client would take a missing key for true, or guess it."""
        machine = {"machine_shape": self.accelerator} if self.gpu else {}
        return machine | {
            "id": self.id, "title": self.title, "code_file": self.code_file, "language": "python",
            "kernel_type": "notebook" if self.notebook else "script", "is_private": True,
            "enable_gpu": self.gpu, "enable_tpu": False, "enable_internet": self.internet,
            "dataset_sources": list(self.datasets), "competition_sources": [COMPETITION],
            "kernel_sources": list(self.sources), "model_sources": [],
        }  # fmt: skip


def slugify(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check(kernel: Kernel) -> None:
    """Raises InputError for what Kaggle would refuse, or accept and then answer with 403."""
    title = f"title {kernel.title!r}"
    if not TITLE[0] <= len(kernel.title) <= TITLE[1]:
        raise InputError(f"{title}: {len(kernel.title)} characters; Kaggle takes {TITLE[0]} to {TITLE[1]}")
    if kernel.slug != kernel.title.replace(" ", "-"):
        raise InputError(f"{title}: its id would be {kernel.slug!r}; use lower-case letters, digits and spaces")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,}", kernel.owner):
        raise InputError(f"--owner {kernel.owner!r}: give your Kaggle user name, as in kaggle.com/<name>")
    for source in (*kernel.sources, *kernel.datasets):
        if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", source):
            raise InputError(f"source {source!r}: give owner/slug")


def build(kernel: Kernel, folder: Path, dirty: bool = False) -> Path:
    """Writes the kernel's folder into `folder` and returns it. Raises InputError; nothing is written then."""
    check(kernel)
    commit = commit_of(dirty, kernel.extra)
    code = render(kernel, commit, pack(commit, kernel.folds_file, kernel.cars, kernel.extra)).encode()
    if len(code) >= LIMIT:
        raise InputError(f"{kernel.code_file}: {len(code):,} bytes; Kaggle takes less than {LIMIT:,}")
    target = folder / kernel.slug
    with replacing(target / kernel.code_file) as temporary:
        temporary.write_bytes(code)
    write_json(target / "kernel-metadata.json", kernel.metadata())
    print(f"{target}: {kernel.id}, {len(code):,} of {LIMIT:,} bytes", flush=True)
    return target


def commit_of(dirty: bool, extra: Sequence[str] = ()) -> str:
    """The current commit. If packed files differ from it: with `dirty` marked so, otherwise InputError."""
    try:
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", "src", "folds", "kernels", *extra)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(getattr(error, "stderr", str(error)).split())
        raise InputError(f"{REPOSITORY}: git names no commit ({reason})") from None
    if changes and not dirty:
        first = changes.splitlines()[0].strip()
        raise InputError(f"uncommitted changes ({first}); commit them, or give --dirty: the kernel then says so")
    return f"{commit}-dirty" if changes else commit


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def pack(commit: str, folds_file: Path, cars: Path | None, extra: Sequence[str] = ()) -> bytes:
    """A zip of scripts, library, experiments, folds, runtime.py and `extra`; the same bytes for the same files."""
    files = [path for folder in ("src", *extra) for path in sorted((REPOSITORY / folder).rglob("*"))]
    files = [path for path in files if path.suffix in PACKED and not path.is_relative_to(LEFT_OUT)]
    files.append(HERE / "runtime.py")
    contents = {file.relative_to(REPOSITORY).as_posix(): file.read_bytes() for file in files}
    contents |= {"COMMIT": f"{commit}\n".encode(), "folds/folds.csv": folds_file.read_bytes()}
    if cars:
        contents["cars.txt"] = cars.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def render(kernel: Kernel, commit: str, packed: bytes) -> str:
    """The text of a script or notebook: the kernel's title, the cells of unpack.py, the kernel's other cells."""
    facts = {"gpu": kernel.gpu, "internet": kernel.internet, "cars": kernel.cars is not None}
    settings = {"kernel": kernel.kind, **kernel.settings, **facts}
    unpack = (HERE / "unpack.py").read_text()
    for name, value in {"SETTINGS": settings, "COMMIT": commit, "PACKED": base64.b85encode(packed).decode()}.items():
        unpack = unpack.replace(f"{name} = ...", f"{name} = {value!r}")
    title, *steps = split_cells((HERE / kernel.kind / "kernel.py").read_text())
    cells = [title, *split_cells(unpack), *steps]
    return as_notebook(cells) if kernel.notebook else "\n\n".join(cells) + "\n"


def split_cells(text: str) -> list[str]:
    """The parts that begin with a line `# %%`, with that line."""
    return [part.strip() for part in re.split(r"^(?=# %%)", text, flags=re.MULTILINE) if part.strip()]


def as_notebook(cells: list[str]) -> str:
    """A notebook with a cell for each part; the packed code is folded away."""
    try:
        from nbformat import v4, validate
    except ImportError:
        raise InputError("--notebook: pip install -r kernels/requirements.txt") from None
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for number, cell in enumerate(cells):
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            text = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
            notebook.cells.append(v4.new_markdown_cell(text, id=f"cell-{number}"))
        else:
            hidden = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}} if "PACKED =" in body else {}
            code = f"# {head.removeprefix('# %%').strip()}\n{body}"
            notebook.cells.append(v4.new_code_cell(code, id=f"cell-{number}", metadata=hidden))
    validate(notebook)
    return json.dumps(notebook, indent=1, sort_keys=True) + "\n"
