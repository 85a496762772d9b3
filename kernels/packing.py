"""A Kaggle kernel: `src/` and a short kernel in one script or notebook, its metadata, and what Kaggle would refuse.

The same commit and settings give the same bytes.
"""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
COMPETITION = "carvana-image-masking-challenge"
LIMIT = 1_000_000  # bytes of a script; Kaggle's server refuses more, its client does not look
TITLE = (5, 50)  # characters
SHAPES = {"t4": "NvidiaTeslaT4", "cpu": None}  # "NvidiaTeslaT4" is two of them
BUILD = HERE / "build"
FOLDS = REPOSITORY / "folds" / "folds.csv"
PACKED = (".py", ".yaml", ".html", ".js")  # of src/
EPOCH = (1980, 1, 1, 0, 0, 0)  # of zip files: the same sources give the same bytes


class BuildError(Exception):
    """What the user can mend, in one line."""


@dataclass(frozen=True)
class Kernel:
    """What is built. `sources` are kernels, `owner/slug`, whose output is attached."""

    kind: str  # train, submit or merge
    title: str
    owner: str
    settings: dict
    machine: str = "t4"
    internet: bool = False
    notebook: bool = False
    sources: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    cars: Path | None = None
    folds_file: Path = FOLDS

    @property
    def slug(self) -> str:
        """As Kaggle makes it of the title."""
        return slugify(self.title)

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.slug}"

    @property
    def code_file(self) -> str:
        return f"{self.slug}.{'ipynb' if self.notebook else 'py'}"

    def metadata(self) -> dict:
        """kernel-metadata.json. What is left out would be true or guessed by the client."""
        machine = {"machine_shape": SHAPES[self.machine]} if SHAPES[self.machine] else {}
        return {
            "id": self.id,
            "title": self.title,
            "code_file": self.code_file,
            "language": "python",
            "kernel_type": "notebook" if self.notebook else "script",
            "is_private": True,
            "enable_gpu": self.machine != "cpu",
            "enable_tpu": False,
            "enable_internet": self.internet,
            "dataset_sources": list(self.datasets),
            "competition_sources": [COMPETITION],
            "kernel_sources": list(self.sources),
            "model_sources": [],
            **machine,
        }


def slugify(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def check(kernel: Kernel) -> None:
    """Raises BuildError for what Kaggle would refuse, or take and answer with surprises."""
    if not TITLE[0] <= len(kernel.title) <= TITLE[1]:
        raise BuildError(f"title {kernel.title!r}: of {len(kernel.title)} characters; Kaggle takes 5 to 50")
    if kernel.slug != kernel.title.replace(" ", "-"):
        raise BuildError(f"title {kernel.title!r}: its id would be {kernel.slug!r}; give small letters, digits, blanks")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,}", kernel.owner):
        raise BuildError(f"--owner {kernel.owner!r}: give your Kaggle user name, as in kaggle.com/<name>")
    if kernel.machine not in SHAPES:
        raise BuildError(f"--machine {kernel.machine}: Kaggle has no such one here; choose from {', '.join(SHAPES)}")
    for source in (*kernel.sources, *kernel.datasets):
        if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", source):
            raise BuildError(f"source {source!r}: give owner/slug")


def build(kernel: Kernel, folder: Path, dirty: bool = False) -> Path:
    """Writes the kernel's folder and returns it. Raises BuildError; nothing is written then."""
    check(kernel)
    commit = commit_of(dirty)
    packed = pack(commit, kernel.folds_file, kernel.cars)
    code = render(kernel, commit, packed)
    if len(code.encode()) >= LIMIT:
        raise BuildError(f"{kernel.code_file}: {len(code.encode())} bytes; Kaggle takes less than {LIMIT}")
    target = folder / kernel.slug
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / kernel.code_file, code)
    write_whole(target / "kernel-metadata.json", json.dumps(kernel.metadata(), indent=1) + "\n")
    return target


def commit_of(dirty: bool) -> str:
    """The commit that is built. Raises BuildError if what is packed differs from it, unless `dirty`: then stamped."""
    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "src", "folds", "kernels")
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{REPOSITORY}: not a git repository, so there is no commit to name ({error})") from None
    if changed and not dirty:
        first = changed.splitlines()[0].strip()
        raise BuildError(f"uncommitted changes ({first}); commit them, or give --dirty, which the kernel will say")
    return f"{commit}-dirty" if changed else commit


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def pack(commit: str, folds_file: Path, cars: Path | None) -> bytes:
    """A zip of scripts, library, experiments, folds and runtime.py; the same bytes for the same files."""
    files = sorted(path for path in (REPOSITORY / "src").rglob("*") if path.suffix in PACKED)
    files.append(HERE / "runtime.py")
    contents = {file.relative_to(REPOSITORY).as_posix(): file.read_bytes() for file in files}
    contents["COMMIT"] = f"{commit}\n".encode()
    contents["folds/folds.csv"] = folds_file.read_bytes()
    if cars:
        contents["cars.txt"] = cars.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def render(kernel: Kernel, commit: str, packed: bytes) -> str:
    """The kernel's cells after one that unpacks the code beside them; as a script or a notebook."""
    digest = hashlib.sha256(packed).hexdigest()
    settings = {"kernel": kernel.kind, **kernel.settings, "internet": kernel.internet, "cars": kernel.cars is not None}
    unpack = (HERE / "unpack.py").read_text()
    for name, value in (("SETTINGS", settings), ("COMMIT", commit), ("DIGEST", digest)):
        unpack = unpack.replace(f"{name} = ...", f"{name} = {value!r}")
    unpack = unpack.replace("PACKED = ...", f'PACKED = "{base64.b85encode(packed).decode()}"')
    head, *rest = split_cells((HERE / kernel.kind / "kernel.py").read_text())
    cells = [head, *split_cells(unpack), *rest]
    if not kernel.notebook:
        return "\n\n".join(cells) + "\n"
    return as_notebook(cells)


def split_cells(text: str) -> list[str]:
    """The parts that begin with `# %%`, with that line."""
    return [part.strip() for part in re.split(r"^(?=# %%)", text, flags=re.MULTILINE) if part.strip()]


def as_notebook(cells: list[str]) -> str:
    """nbformat's notebook: a cell for each part, the packed code folded away."""
    try:
        from nbformat import v4, validate
    except ImportError:
        raise BuildError("--notebook: pip install -r kernels/requirements.txt") from None
    made = []
    for number, cell in enumerate(cells):
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            made.append(v4.new_markdown_cell(re.sub(r"^# ?", "", body, flags=re.MULTILINE), id=f"cell-{number}"))
            continue
        title = head.removeprefix("# %%").strip()
        folded = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}} if "PACKED =" in body else {}
        made.append(v4.new_code_cell(f"# {title}\n{body}", id=f"cell-{number}", metadata=folded))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=made, metadata=kernel)
    validate(notebook)
    return json.dumps(notebook, indent=1, sort_keys=True) + "\n"


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def encoder_of(experiment: str, overrides: list[str]) -> str | None:
    """The timm encoder whose pretrained weights an experiment needs; None if it needs none. Raises BuildError."""
    path = REPOSITORY / "src" / "experiments" / f"{experiment}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise BuildError(f"{experiment}: no such experiment in src/experiments; there are {known}")
    model = (yaml.safe_load(path.read_text()) or {}).get("model", {})
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("model."):
            model[key.removeprefix("model.")] = yaml.safe_load(value)
    if model.get("architecture") == "vanilla_unet" or model.get("pretrained") is False:
        return None
    return model.get("encoder", "tf_efficientnet_lite0")


def parse_folds(text: str) -> list[int]:
    """`0-4`, `0,2` or `3`."""
    folds = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d)(?:-(\d))?", part.strip())
        if not match:
            raise BuildError(f"--folds {text}: give 0-4, 0,2 or 3")
        folds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not folds or len(set(folds)) != len(folds):
        raise BuildError(f"--folds {text}: give each fold once")
    return folds


def train_settings(
    experiment: str, folds: list[int], overrides: list[str], tta: str, hours: float, together: bool
) -> dict:
    """What train/kernel.py reads."""
    encoder = encoder_of(experiment, overrides)
    return {
        "experiment": experiment, "folds": folds, "overrides": overrides, "encoder": encoder, "tta": tta,
        "hours": hours, "together": together,
    }  # fmt: skip


def submit_settings(
    experiments: list[str], shard: tuple[int, int], tta: str, threshold: float | None, hours: float
) -> dict:
    """What submit/kernel.py reads."""
    return {
        "experiments": experiments, "shard": list(shard), "tta": tta, "threshold": threshold, "hours": hours,
    }  # fmt: skip
