"""What is to be predicted for a submission, and by what."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from carvana.checkpoint import Checkpoint
from carvana.choice import Choice
from carvana.device import Device
from carvana.errors import InputError
from carvana.geometry import Size
from carvana.images import Photos
from carvana.inference import Member, fold_member, predict_runs
from carvana.provenance import file_digest, git_commit, versions
from carvana.shards import Manifest, Shard, cut_shard, digest_names
from carvana.windows import box_checkpoints, find_cars

WINDOWS = 1024  # photos in which cars are found before their boxes are predicted


def build_members(
    choice: Choice, checkpoints: dict[str, list[Checkpoint]], device: Device, backend: str
) -> list[Member]:
    return [
        fold_member(folds, choice.views, device, choice.mean, choice.experiments[name], backend)
        for name, folds in checkpoints.items()
    ]


@dataclass(frozen=True)
class Job:
    """What is to be predicted, and by what."""

    photos: Photos
    image_ids: list[str]
    checkpoints: dict[str, list[Checkpoint]]
    choice: Choice
    device: Device
    backend: str
    batch_size: int
    num_workers: int

    @property
    def names(self) -> list[str]:
        return [self.photos.name(image_id) for image_id in self.image_ids]

    @cached_property
    def size(self) -> Size:
        """Of the first photo; all must have it."""
        return self.photos.image(self.image_ids[0]).shape[:2]

    def rows(self, image_ids: list[str]) -> Iterator[tuple[str, str]]:
        """(photo name, RLE) of each photo. Raises InputError for one of another size, which no submission can mix."""
        members = build_members(self.choice, self.checkpoints, self.device, self.backend)
        for some in self.parts(image_ids):
            yield from self.rows_of(members, some)

    def parts(self, image_ids: list[str]) -> Iterator[list[str]]:
        """What is predicted at a time: all, or few enough that a crash does not lose many windows."""
        boxes = any(box_checkpoints(folds) for folds in self.checkpoints.values())
        step = WINDOWS if boxes else max(1, len(image_ids))
        return (image_ids[first : first + step] for first in range(0, len(image_ids), step))

    def rows_of(self, members: list[Member], image_ids: list[str]) -> Iterator[tuple[str, str]]:
        choice, photos = self.choice, self.photos
        for folds in self.checkpoints.values():
            photos = find_cars(photos, image_ids, folds, self.device, self.batch_size, self.num_workers)
        encoded = predict_runs(
            members, photos, image_ids, self.device, choice.threshold, choice.postprocess, self.batch_size,
            self.num_workers,
        )  # fmt: skip
        for image_id, photo_size, rle in encoded:
            check_size(self.photos.name(image_id), photo_size, self.size)
            yield self.photos.name(image_id), rle

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """Of all checkpoints, by experiment and fold; those that find the cars as well."""
        found = {}
        for name, folds in self.checkpoints.items():
            found[name] = {str(fold.fold): fold.digest for fold in folds}
            if paths := box_checkpoints(folds):
                digests = map(file_digest, paths)
                found[f"{name}'s boxes"] = {str(fold.fold): d for fold, d in zip(folds, digests, strict=True)}
        return found

    def manifest(self, part: Shard, block_size: int) -> Manifest:
        """What says of a part how it was made; a block is rounded up to whole batches."""
        choice, names = self.choice, self.names
        places = cut_shard(part, len(names), self.batch_size)
        return Manifest(
            shard=str(part), first=places.start, photos=len(places), sample=digest_names(names),
            sample_photos=len(names), size=self.size,
            checkpoints=self.digests,
            weights=choice.experiments, views=list(choice.views), mean=choice.mean, threshold=choice.threshold,
            postprocess=vars(choice.postprocess), batch_size=self.batch_size,
            block_size=-(-block_size // self.batch_size) * self.batch_size,
            device=self.device.describe(), backend=self.backend, commit=git_commit(), versions=versions(),
        )  # fmt: skip


def check_size(name: str, photo_size: Size, size: Size) -> None:
    if photo_size != size:
        raise InputError(f"{name}: photos of different sizes in one submission: {sorted([photo_size, size])}")
