"""Shards of the test set, the manifest that says what a part of a submission is, and which parts make a whole."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from carvana.errors import InputError, few
from carvana.geometry import Size
from carvana.log import replacing
from carvana.provenance import file_digest


class Shard(NamedTuple):
    """Shard `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """The shard written `i/n`, with i from 1 to n."""
    match = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text)
    if not match or int(match[1]) > int(match[2]):
        raise InputError(f"--shard {text}: give i/n with i from 1 to n, such as 1/3")
    return Shard(int(match[1]), int(match[2]))


def cut_shard(shard: Shard, photos: int, batch_size: int) -> range:
    """The places in the sample that a shard covers: neighbours, and whole batches.

    So a photo has the same neighbours in its batch, and its probabilities the same rounding, whatever the shards.
    """
    batches = -(-photos // batch_size)
    if shard.count > batches:
        raise InputError(
            f"--shard {shard}: {photos} photos are only {batches} batches of {batch_size}; use fewer shards"
        )
    first, end = (batches * number // shard.count * batch_size for number in (shard.number - 1, shard.number))
    return range(first, min(end, photos))


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
    mean: str  # of the views: probs or logits
    threshold: float
    postprocess: dict[str, int]
    batch_size: int
    block_size: int
    device: str
    backend: str
    commit: str
    versions: dict[str, str]
    digest: str | None = None  # sha256 of the part's file, once it is written


ALIKE = (
    "sample",
    "sample_photos",
    "size",
    "checkpoints",
    "weights",
    "views",
    "mean",
    "threshold",
    "postprocess",
    "backend",
)  # in all parts
SAME_JOB = (*ALIKE, "shard", "first", "photos", "batch_size", "block_size")


def find_difference(one: Manifest, other: Manifest, keys: tuple[str, ...]) -> str | None:
    """The first of the keys in which two manifests differ, in words; None if they agree."""
    for key in keys:
        ours, theirs = getattr(one, key), getattr(other, key)
        if ours != theirs:
            said = f"{key.replace('_', ' ')} {_plain(theirs)} instead of {_plain(ours)}"
            return {"sample": "another sample", "checkpoints": "other checkpoints"}.get(key, said)
    return None


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def digest_names(names: list[str]) -> str:
    """sha256 of a sample's names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def manifest_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def write_manifest(path: Path, manifest: Manifest) -> None:
    with replacing(path) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Raises InputError if the file is missing or no manifest."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing; src/make_submission.py --shard writes it beside the part") from None
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
    _check_alike(ordered, manifests)
    _check_cover(ordered, manifests)
    for part in ordered:
        if not part.is_file() or file_digest(part) != manifests[part].digest:
            raise InputError(f"{part}: missing, cut or not the file of its manifest; fetch or predict it again")
    return ordered, manifests[ordered[0]]


def _check_alike(ordered: list[Path], manifests: dict[Path, Manifest]) -> None:
    one = ordered[0]
    for other in ordered[1:]:
        if difference := find_difference(manifests[one], manifests[other], ALIKE):
            raise InputError(f"{one}, {other}: the second has {difference}; predict all parts alike")


def _check_cover(ordered: list[Path], manifests: dict[Path, Manifest]) -> None:
    whole, before, covered = manifests[ordered[0]].sample_photos, None, 0
    for part in ordered:
        first, photos = manifests[part].first, manifests[part].photos
        if first < covered:
            raise InputError(f"{before}, {part}: both hold photo {first + 1} of the sample; give one of them")
        if first > covered:
            raise InputError(f"{_list(before, part)}: {_gap(covered, first, whole)}")
        before, covered = part, first + photos
    if covered < whole:
        raise InputError(f"{before}: {_gap(covered, whole, whole)}")


def _list(*parts: Path | None) -> str:
    return ", ".join(str(part) for part in parts if part)


def _gap(first: int, end: int, whole: int) -> str:
    return f"photos {first + 1} to {end} of {whole} are in no part; give the other parts too"
