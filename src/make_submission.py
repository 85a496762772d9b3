"""Predicts the test photos and writes the CSV for Kaggle: all folds of all named experiments, averaged.

`python src/make_submission.py unet_lite0 --tta hflip --output submissions/unet_lite0.csv.gz`

What is predicted is kept in `<output>.parts/` until the file is whole: after a crash the same command continues. The
work is shared by the processes of torchrun, or cut into `--shard`s that src/merge_submissions.py joins.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import PartialState

from carvana.archive import Archive
from carvana.blocks import Blocks
from carvana.checkpoint import Checkpoint, load_checkpoint
from carvana.choice import Choice, read_ensemble
from carvana.command import INPUT, RUNS, BatchOption, CarsOption, InputOption, RunsOption, TtaOption, WorkersOption, run
from carvana.device import Device, local_device
from carvana.ensemble import Ensemble
from carvana.errors import InputError, few
from carvana.estimate import measure
from carvana.geometry import Size
from carvana.images import Photos, open_test
from carvana.inference import Member, fold_model, predict_runs
from carvana.log import say, silence
from carvana.oof import choose_threshold, find_checkpoints
from carvana.provenance import file_digest, git_commit, versions
from carvana.shards import Manifest, Shard, cut_shard, digest_names, manifest_path, parse_shard, write_manifest
from carvana.submission import check_suffix, read_sample
from carvana.tta import parse_views

STOPPED = 3  # exit status: --hours are over, and the file is not there yet
HALF = 0.5  # a threshold good enough to estimate with
SESSION = 11.5  # hours; Kaggle ends a session after 12
ESTIMATE_BATCHES, ESTIMATE_SECONDS = 64, 30.0


def main(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Names of trained experiments, as under runs/; or --ensemble.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The CSV: .csv, .csv.gz or .zip. Needed unless --estimate is given.")
    ] = None,
    ensemble: Annotated[
        Path | None, typer.Option(help="What src/choose_ensemble.py has chosen: ensemble.json, instead of names.")
    ] = None,
    tta: TtaOption = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability of a car pixel; by default oof.json's.")
    ] = None,
    shard: Annotated[
        str,
        typer.Option(help="i/n predicts the i-th (from 1) of n neighbouring parts; src/merge_submissions.py joins."),
    ] = "1/1",
    hours: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before so many hours are over, with exit status 3; the same command continues."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Forget what an earlier command left in <output>.parts/.")] = False,
    estimate: Annotated[
        bool, typer.Option(help="Only measure a few photos: hours, memory, size of the CSV, shards of --hours.")
    ] = False,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
    block_size: Annotated[
        int, typer.Option(min=1, help="Photos kept at a time, in whole batches: a crash loses no more.")
    ] = 128,
) -> None:
    started = time.monotonic()
    views, part = parse_views("hflip" if tta is None else tta), parse_shard(shard)
    check_source(experiments, ensemble, tta, threshold)
    if not estimate:
        check_output(output)
    state, device = join_processes(), local_device()
    photos = open_test(input_root, cars_file=cars)
    sample = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    image_ids = match_sample(sample, photos, whole=cars is None)
    names = [photos.name(image_id) for image_id in image_ids]
    if ensemble:
        choice, paths = read_ensemble(ensemble, runs)
        checkpoints = load_all(paths)
    else:
        checkpoints = load_all({experiment: find_checkpoints(runs, experiment) for experiment in experiments})
        if threshold is None:
            threshold = HALF if estimate else choose_threshold(runs, checkpoints, views)
        choice = Choice(experiments=dict.fromkeys(checkpoints, 1 / len(checkpoints)), views=views, threshold=threshold)
    members = [ensemble_folds(folds, choice, name, device) for name, folds in checkpoints.items()]
    size = photos.image(image_ids[0]).shape[:2]
    predict = partial(
        predict_rows, members, photos, size=size, device=device, threshold=choice.threshold,
        postprocess=choice.postprocess, batch_size=batch_size, num_workers=num_workers,
    )  # fmt: skip
    networks = sum(map(len, checkpoints.values()))
    say(f"{choice}; {len(names)} photos, {networks} networks x {len(choice.views)} views, {device.device}")
    if estimate:
        rows = predict(spread(image_ids, ESTIMATE_BATCHES * batch_size))
        return print_estimate(rows, len(names), batch_size, hours or SESSION, device)

    places = cut_shard(part, len(names), batch_size)
    manifest = Manifest(
        shard=str(part), first=places.start, photos=len(places), sample=digest_names(names), sample_photos=len(names),
        size=size, checkpoints={name: {str(c.fold): c.digest for c in folds} for name, folds in checkpoints.items()},
        weights=choice.experiments, views=list(choice.views), mean=choice.mean, threshold=choice.threshold,
        postprocess=vars(choice.postprocess),
        batch_size=batch_size, block_size=-(-block_size // batch_size) * batch_size,
        device=describe(device), commit=git_commit(), versions=versions(),
    )  # fmt: skip
    blocks = Blocks(output, manifest, names[places.start : places.stop])
    mine = share_blocks(blocks, overwrite, state)
    chosen = [image_ids[place] for block in mine for place in blocks.places_of(block)]
    end = started + 3600 * hours if hours is not None else math.inf
    seconds = fill_blocks(blocks, mine, predict(chosen), end)
    require_all(blocks, state)
    if state.is_main_process:
        finish(blocks, part)
        pace = len(chosen) * state.num_processes / seconds
        print(
            f"{output}: {len(places)} rows, checked; {seconds:.0f} s, {pace:.2f} photos a second, "
            f"peak memory {peak_memory(device)} without loaders"
        )
    return None


def check_output(output: Path | None) -> None:
    if output is None:
        raise InputError("--output: missing; name the CSV to be written")
    check_suffix(output)


def join_processes() -> PartialState:
    """The processes of torchrun. They wait a week for each other: none knows how long the others' photos take."""
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    if not state.is_main_process:
        silence()
    return state


def match_sample(names: list[str], photos: Photos, whole: bool) -> list[str]:
    """The image ids of the sample's rows, in its order; unless `whole`, only of those that have a photo.

    Raises InputError if a photo is not there, or none is.
    """
    image_ids = {photos.name(image_id): image_id for image_id in photos.image_ids}
    missing, path = [name for name in names if name not in image_ids], photos.photo_part.path
    if missing and (whole or len(missing) == len(names)):
        raise InputError(f"{path}: lacks {len(missing)} of the {len(names)} photos of the sample: {few(missing)}")
    return [image_ids[name] for name in names if name in image_ids]


def check_source(
    experiments: list[str] | None, ensemble: Path | None, tta: str | None, threshold: float | None
) -> None:
    """Raises InputError unless either experiments are named or an ensemble's file, which holds all the rest."""
    if bool(experiments) == bool(ensemble):
        raise InputError("give names of experiments, or --ensemble runs/ensemble.json: one of the two")
    if ensemble and (tta is not None or threshold is not None):
        raise InputError(f"--ensemble: {ensemble} holds views and threshold; leave out --tta and --threshold")


def load_all(paths: dict[str, list[Path]]) -> dict[str, list[Checkpoint]]:
    return {experiment: [load_checkpoint(path) for path in folds] for experiment, folds in paths.items()}


def ensemble_folds(folds: list[Checkpoint], choice: Choice, experiment: str, device: Device) -> Member:
    """The mean of an experiment's folds, and the experiment's weight, however many folds it has."""
    fits = {fold.config.data.geometry for fold in folds}
    if len(fits) > 1:
        raise InputError(f"{folds[0].path.parents[1]}: its folds were trained at different sizes; train them alike")
    models = [fold_model(fold, choice.views, device, choice.mean) for fold in folds]
    return Member(fits.pop(), Ensemble(models), choice.experiments[experiment])


def predict_rows(
    members: list[Member], photos: Photos, image_ids: list[str], size: Size, device: Device, **options
) -> Iterator[tuple[str, str]]:
    """(photo name, RLE) of each photo. Raises InputError for one of another size, which no submission can mix."""
    for image_id, photo_size, rle in predict_runs(members, photos, image_ids, device, **options):
        check_size(photos.name(image_id), photo_size, size)
        yield photos.name(image_id), rle


def check_size(name: str, photo_size: Size, size: Size) -> None:
    if photo_size != size:
        raise InputError(f"{name}: photos of different sizes in one submission: {sorted([photo_size, size])}")


def share_blocks(blocks: Blocks, overwrite: bool, state: PartialState) -> list[int]:
    """The blocks that this process is to predict: neighbours among those that are not there yet."""
    if state.is_main_process:
        blocks.remove() if overwrite else blocks.check()
    state.wait_for_everyone()
    left = blocks.remaining()
    state.wait_for_everyone()
    if len(left) < len(blocks):
        say(f"{blocks.folder}: {len(blocks) - len(left)} of {len(blocks)} blocks are there already")
    first, end = (
        len(left) * number // state.num_processes for number in (state.process_index, state.process_index + 1)
    )
    return left[first:end]


def require_all(blocks: Blocks, state: PartialState) -> None:
    """Ends the script with status 3 if a block is missing when all processes have come here."""
    state.wait_for_everyone()
    left = len(blocks.remaining())
    state.wait_for_everyone()
    if left:
        there = f"{len(blocks) - left} of {len(blocks)} blocks are in {blocks.folder}"
        say(f"{blocks.output}: stopped before it is whole, {there}; give the same command to continue")
        raise typer.Exit(STOPPED)


def fill_blocks(blocks: Blocks, mine: list[int], rows: Iterator[tuple[str, str]], end: float) -> float:
    """Writes blocks until one more might not be done at `end`, on the monotonic clock; returns the seconds taken.

    At least one is written, so that every command comes closer to the whole.
    """
    started = before = time.monotonic()
    slowest = 0.0
    for block in mine:
        blocks.write(block, list(islice(rows, len(blocks.names_of(block)))))
        now = time.monotonic()
        slowest, before = max(slowest, now - before), now
        if now + slowest > end:
            break
    return max(time.monotonic() - started, 1e-3)


def finish(blocks: Blocks, part: Shard) -> None:
    """Writes the file, a shard's manifest beside it, and only then forgets the blocks."""
    blocks.publish()
    if part.count > 1:
        manifest = blocks.manifest.model_copy(update={"digest": file_digest(blocks.output)})
        write_manifest(manifest_path(blocks.output), manifest)
    blocks.remove()


def spread(image_ids: list[str], count: int) -> list[str]:
    """So many of the photos, evenly from all of them: one car's masks are all alike."""
    return image_ids[:: max(len(image_ids) // count, 1)][:count]


def print_estimate(rows: Iterator[tuple[str, str]], photos: int, batch_size: int, hours: float, device: Device) -> None:
    found = measure(rows, first=batch_size, enough=ESTIMATE_BATCHES * batch_size, seconds=ESTIMATE_SECONDS)
    plain, packed = found.gigabytes(photos)
    print(f"{found.rate:.2f} photos a second, measured on {found.photos}")
    print(f"{found.hours(photos):.2f} hours for {photos} photos on this device")
    print(f"peak memory {peak_memory(device)} without loaders")
    print(f"CSV {plain:.3f} GB, compressed {packed:.3f} GB")
    print(f"{found.shards(photos, hours)} shards of at most {hours:g} hours")


def describe(device: Device) -> str:
    """The device and its precision, such as `Tesla T4, fp16`."""
    cuda = device.device.type == "cuda"
    return f"{torch.cuda.get_device_name(device.device) if cuda else device.device.type}, {device.precision}"


def peak_memory(device: Device) -> str:
    """Largest resident set of this process, without its loaders, and on a GPU what tensors took there.

    macOS counts bytes, Linux KiB.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)
    if device.device.type != "cuda":
        return f"{host} MiB"
    return f"{host} MiB and {torch.cuda.max_memory_allocated(device.device) >> 20} MiB on the GPU"


if __name__ == "__main__":
    run(main)
