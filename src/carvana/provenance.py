"""Where a file came from: versions of the libraries, commit of the code, digest of a file."""

import functools
import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from carvana.log import say

PACKED = Path(__file__).resolve().parents[2] / "COMMIT"  # written by kernels/packing.py: its code has no repository
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Python's and the libraries' versions; a library under another distribution's name is left out."""
    installed = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            installed[library] = version(library)
    return installed


@functools.cache  # src/train.py asks at its start: what is committed while it trains is not what trains
def git_commit() -> str:
    """The commit of this code, `-dirty` if tracked files in src/ differ from it; `unknown` if git tells none."""
    if PACKED.is_file():
        return PACKED.read_text().strip()
    ask = functools.partial(subprocess.run, cwd=PACKED.parent / "src", capture_output=True, text=True, check=True)
    try:
        changed = ask(["git", "status", "--porcelain", "--untracked-files=no", "--", "."]).stdout
        return ask(["git", "rev-parse", "HEAD"]).stdout.strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(getattr(error, "stderr", str(error)).split())  # with git's remedy, if it mistrusts the owner
        say(f"note: the commit of this code is unknown ({reason})")
        return "unknown"


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
