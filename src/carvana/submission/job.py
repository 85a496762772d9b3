"""What is to be predicted for a submission, how long that will take, and the prediction in blocks."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from carvana.data.archive import Archive
from carvana.data.folds import fold_name
from carvana.data.geometry import Size
from carvana.data.images import Photos
from carvana.data.labels import LABELS, SOFT, Label
from carvana.data.loader import Loading
from carvana.device import Device, share, side_by_side
from carvana.errors import InputError, few
from carvana.log import alone_in, say
from carvana.models.checkpoint import Checkpoint, all_seen_cars
from carvana.prediction.ensemble import Choice
from carvana.provenance import git_commit, versions
from carvana.submission.blocks import ROWS, Blocks, Rows
from carvana.submission.choice import build_predictor
from carvana.submission.csv import read_sample
from carvana.submission.labels import describe_kinds
from carvana.submission.manifest import Manifest, digest_names, parse_shard

ESTIMATE_BATCHES, ESTIMATE_SECONDS = 64, 30.0


def read_names(input_root: Path, labelled: bool) -> list[str] | None:
    """The sample's names. Photos that are only labelled need no sample: None if there is none."""
    archive, name = Archive(input_root), "sample_submission.csv"
    if labelled and not archive.has_file(name):
        say(f"{input_root}: no {name}; all test photos are labelled")
        return None
    return read_sample(archive.read_file(name))


def match_sample(names: list[str], photos: Photos, whole: bool) -> list[str]:
    """The image ids of the sample's rows, in its order; unless `whole`, only of those that have a photo.

    Raises InputError if there is no photo at all, or, if `whole`, if one is missing.
    """
    image_ids = {photos.name(image_id): image_id for image_id in photos.image_ids}
    missing, path = [name for name in names if name not in image_ids], photos.photo_part.path
    if missing and (whole or len(missing) == len(names)):
        raise InputError(f"{path}: lacks {len(missing)} of the {len(names)} photos of the sample: {few(missing)}")
    return [image_ids[name] for name in names if name in image_ids]


@dataclass(frozen=True)
class Job:
    """What is to be predicted, and by what."""

    photos: Photos
    image_ids: list[str]
    networks: dict[str, list[Checkpoint]]
    choice: Choice
    device: Device
    backend: str
    loading: Loading
    beside: tuple[str, ...] = ()  # kinds of files that are made beside the submission: LABELS, SOFT

    @property
    def names(self) -> list[str]:
        return [self.photos.name(image_id) for image_id in self.image_ids]

    @cached_property
    def size(self) -> Size:
        """Of the first photo; all must have it."""
        return self.photos.image(self.image_ids[0]).shape[:2]

    @property
    def seen_cars(self) -> list[str]:
        """All that any of the networks has learnt from."""
        return all_seen_cars(network.path for folds in self.networks.values() for network in folds)

    def rows(self, image_ids: list[str]) -> Iterator[Rows]:
        """What is made of each of these photos. Raises InputError if one differs in size from the first of all."""
        choice, each = self.choice, LABELS in self.beside
        predictor = build_predictor(choice, self.networks, self.device, self.loading, self.backend, each)
        describe = partial(describe_kinds, self.beside)
        encoded = predictor.encode(self.photos, image_ids, choice.threshold, choice.postprocess, describe)
        for image_id, size, rle, facts in encoded:
            name = self.photos.name(image_id)
            if size != self.size:
                sizes = sorted([size, self.size])
                raise InputError(f"{name}: photos of different sizes in one submission: {sizes}")
            rows = {ROWS: (name, rle)}
            if LABELS in self.beside:
                rows[LABELS] = Label(name, rle, *facts[LABELS])
            if SOFT in self.beside:
                rows[SOFT] = (f"{image_id}.png", facts[SOFT])
            yield rows

    def manifest(self, shard: str, block_size: int) -> Manifest:
        """The record of how a shard is made. Raises InputError if there are more shards than blocks.

        A block is rounded up to whole batches, and a shard is whole blocks. So a photo has the same neighbours in its
        batch, and its probabilities the same rounding, in any number of shards.
        """
        choice, names, batch_size = self.choice, self.names, self.loading.batch_size
        block_size = -(-block_size // batch_size) * batch_size
        blocks, (number, count) = range(-(-len(names) // block_size)), parse_shard(shard)
        if count > len(blocks):
            raise InputError(f"--shard {shard}: {len(names)} photos are only {len(blocks)} blocks of {block_size}")
        blocks = share(blocks, number - 1, count)
        places = range(len(names))[blocks.start * block_size : blocks.stop * block_size]
        return Manifest(
            shard=shard, first=places.start, photos=len(places), sample=digest_names(names),
            sample_photos=len(names), size=self.size,
            checkpoints={name: {fold_name(n.fold): n.digest for n in used} for name, used in self.networks.items()},
            weights=choice.experiments, views=list(choice.views), threshold=choice.threshold,
            postprocess=vars(choice.postprocess), batch_size=batch_size, block_size=block_size,
            device=str(self.device), backend=self.backend, commit=git_commit(), versions=versions(),
            labels=LABELS in self.beside, soft=SOFT in self.beside,
        )  # fmt: skip

    def estimate_lines(self, hours: float, devices: int) -> list[str]:
        """What people read of a measurement on one device. Its photos are spread, as one car's masks are alike."""
        if hours == 0:
            raise InputError("--hours 0: with --estimate give the hours of a session")
        photos, batch_size = len(self.image_ids), self.loading.batch_size
        enough = ESTIMATE_BATCHES * batch_size
        rows = self.rows(self.image_ids[:: max(photos // enough, 1)][:enough])
        measured, rate = measure(rows, first=batch_size, enough=enough, seconds=ESTIMATE_SECONDS)
        parallel = devices if self.device.device.type == "cuda" else 1  # processes on a CPU share its cores
        needed = photos / rate / 3600 / parallel
        return [
            f"{rate:.2f} photos a second, measured on {measured}",
            f"{needed:.2f} hours for {photos} photos on {devices} device(s)",
            f"{math.ceil(needed / hours)} shards of at most {hours:g} hours",
            f"peak memory {self.device.peak_memory()}",
        ]


def predict_blocks(job: Job, devices: list[Device], blocks: Blocks, overwrite: bool, end: float) -> str | None:
    """Each device predicts its share of the missing blocks until `end`, in a process of its own; then all are joined.

    Returns what people read of it; None, and nothing is joined, if blocks are still missing.
    """
    with alone_in(blocks.folder):
        missing = blocks.begin(overwrite)
        if missing is None:
            return "it was predicted before, --overwrite predicts it anew"
        shares = [share(missing, number, len(devices)) for number in range(len(devices))]
        jobs = [replace(job, device=device) for device in devices]
        calls = [(job, blocks, claimed, end) for job, claimed in zip(jobs, shares, strict=True) if claimed]
        figures = side_by_side(fill_blocks, calls) if calls and time.monotonic() < end else []
        if missing := len(blocks.missing()):
            finished = f"{len(blocks) - missing} of {len(blocks)} blocks are in {blocks.folder}"
            begun = overwrite and missing < len(blocks)  # else what it was to overwrite is still there
            again = f"give the same command{' without --overwrite' * begun} to continue"
            say(f"{blocks.output}: stopped before it is whole, {finished}; {again}")
            return None
        blocks.finish()
    memory = " + ".join(memory for _, memory in figures) or job.device.peak_memory()
    return f"{sum(rate for rate, _ in figures):.2f} photos a second, peak memory {memory}"


def fill_blocks(job: Job, blocks: Blocks, claimed: list[int], end: float) -> tuple[float, str]:
    """Predicts blocks until `end`; photos a second, and the peak memory of this process."""
    image_ids = [job.image_ids[place] for block in claimed for place in blocks.places_of(block)]
    rate = len(image_ids) / blocks.fill(claimed, job.rows(image_ids), end)
    return rate, job.device.peak_memory()


def measure(rows: Iterator, first: int, enough: int, seconds: float) -> tuple[int, float]:
    """Takes rows until there are `enough` or the time is over; gives how many were measured, and rows a second.

    The `first` ones are a warm-up and not counted, unless there are too few rows.
    """
    before = time.monotonic()
    for count, _ in enumerate(rows, start=1):
        now = time.monotonic()
        if count == first:
            started = now
        elif count >= enough or (count > 2 * first and now - started > seconds):
            return count - first, (count - first) / max(now - started, 1e-9)
    return count, count / max(now - before, 1e-9)
