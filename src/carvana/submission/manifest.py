"""Parts of a submission: how the test set is cut, what a manifest says of a part, and which parts make a whole."""

import hashlib
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from carvana.data.geometry import Size
from carvana.errors import InputError, few
from carvana.log import write_json
from carvana.provenance import file_digest


def parse_shard(text: str) -> tuple[int, int]:
    """Number, from 1, and count of the shard written `i/n`."""
    match = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text)
    if not match or int(match[1]) > int(match[2]):
        raise InputError(f"--shard {text}: give i/n with i from 1 to n, such as 1/3")
    return int(match[1]), int(match[2])


class Manifest(BaseModel):
    """What photos were predicted, and by what. Compared before parts are joined and before a job is continued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str  # i/n
    first: int  # place in the sample of the first photo, from 0
    photos: int  # in this shard
    sample: str  # sha256 of the names of the whole sample
    sample_photos: int
    size: Size  # (height, width) of the photos
    checkpoints: dict[str, dict[str, str]]  # sha256 by experiment and fold
    weights: dict[str, float]  # by experiment
    views: list[str]
    threshold: float
    postprocess: dict[str, int]
    batch_size: int
    block_size: int
    device: str
    backend: str
    commit: str
    versions: dict[str, str]
    labels: bool = False  # whether they are made beside it
    soft: bool = False  # whether soft masks are
    kind: Literal["rows", "labels", "soft"] = "rows"  # of the file that this is beside
    seen_cars: list[str] | None = None  # of labels: all that the networks have learnt from
    digest: str | None = None  # sha256 of the part's file, once it is written


PREDICTION = ("sample", "sample_photos", "size", "checkpoints", "weights", "views", "threshold", "postprocess")
PLACE = ("shard", "first", "photos")
ALIKE = (*PREDICTION, "backend", "kind")  # in all parts of a submission
SAME_JOB = (*ALIKE, *PLACE, "block_size", "labels", "soft")


def find_difference(first: Manifest, second: Manifest, keys: tuple[str, ...]) -> str | None:
    """The first of the keys in which two manifests differ, in words; None if they agree."""
    for key in keys:
        if (expected := getattr(first, key)) != (value := getattr(second, key)):
            expected, value = (",".join(v) if isinstance(v, list) else v for v in (expected, value))
            words = f"{key.replace('_', ' ')} {value} instead of {expected}"
            return {"sample": "another sample", "checkpoints": "other checkpoints"}.get(key, words)
    return None


def digest_names(names: list[str]) -> str:
    """sha256 of a sample's names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def manifest_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, manifest.model_dump(mode="json"))


def read_manifest(path: Path) -> Manifest:
    """Raises InputError if the file is missing or no manifest."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; it is written beside the file, and belongs to it") from None
    except ValueError as error:
        raise InputError(f"{path}: not a manifest of this version ({str(error).splitlines()[0]})") from None


def order_parts(parts: list[Path]) -> tuple[list[Path], Manifest]:
    """The parts in the sample's order, and the manifest of one of them.

    Raises InputError, naming the parts, unless they are whole, of one prediction and together the whole sample.
    """
    manifests = {part: read_manifest(manifest_path(part)) for part in parts}
    if len(manifests) < len(parts):
        raise InputError(f"{few([part for part in manifests if parts.count(part) > 1])}: given twice")
    ordered = sorted(parts, key=lambda part: manifests[part].first)
    for part in ordered[1:]:
        if difference := find_difference(manifests[ordered[0]], manifests[part], ALIKE):
            raise InputError(f"{ordered[0]}, {part}: the second has {difference}; predict all parts alike")
    _check_cover(ordered, manifests)
    for part in ordered:
        if not part.is_file() or file_digest(part) != manifests[part].digest:
            raise InputError(f"{part}: missing, cut or not the file of its manifest; fetch or predict it again")
    return ordered, manifests[ordered[0]]


def _check_cover(ordered: list[Path], manifests: dict[Path, Manifest]) -> None:
    whole, before, covered = manifests[ordered[0]].sample_photos, "", 0
    for part in [*ordered, None]:
        first = manifests[part].first if part else whole
        if part and first < covered:
            raise InputError(f"{before}{part}: both hold photo {first + 1} of the sample; give one of them")
        if first > covered:
            gap = f"photos {covered + 1} to {first} of {whole} are in no part; give the other parts too"
            raise InputError(f"{before}{part}: {gap}" if part else f"{before.removesuffix(', ')}: {gap}")
        if part:
            before, covered = f"{part}, ", first + manifests[part].photos
