"""Predicts the test photos and writes the CSV for Kaggle: all folds of all named experiments, averaged.

`python src/make_submission.py unet_lite0 --tta hflip --output submissions/unet_lite0.csv.gz`

What is predicted is kept in `<output>.parts/` until the file is whole: after a crash the same command continues. The
work is shared by the processes of torchrun, or cut into `--shard`s that src/merge_submissions.py joins.

`--images FOLDER --masks-out DIR` cuts cars out of photos of your own instead, of any size.
"""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

import carvana.command  # noqa: F401  before PyTorch, which reads its settings once
from carvana.archive import Archive
from carvana.blocks import Blocks
from carvana.checkpoint import Checkpoint, load_checkpoint
from carvana.choice import Choice, read_ensemble
from carvana.command import (
    INPUT,
    RUNS,
    STOPPED,
    BackendOption,
    BatchOption,
    CarsOption,
    InputOption,
    RunsOption,
    TtaOption,
    WorkersOption,
    command_line,
    run,
)  # fmt: skip
from carvana.cutouts import find_pictures, write_cutouts
from carvana.device import Device, Processes, local_device, process_state
from carvana.errors import InputError, few
from carvana.estimate import measure
from carvana.images import Photos, open_test
from carvana.inference import Member
from carvana.job import Job, build_members
from carvana.journal import note_submission
from carvana.log import say, silence
from carvana.oof import choose_threshold, find_checkpoints
from carvana.shards import parse_shard
from carvana.submission import check_suffix, read_sample
from carvana.tta import parse_views

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
    images: Annotated[Path | None, typer.Option(help="A folder of your own photos, instead of the test set.")] = None,
    masks_out: Annotated[
        Path | None, typer.Option(help="Where masks and cut-outs of --images are written, as PNG.")
    ] = None,
    input_root: InputOption = INPUT,
    runs: RunsOption = RUNS,
    cars: CarsOption = None,
    batch_size: BatchOption = 4,
    num_workers: WorkersOption = 2,
    backend: BackendOption = "torch",
    block_size: Annotated[
        int, typer.Option(min=1, help="Photos kept at a time, in whole batches: a crash loses no more.")
    ] = 128,
) -> None:
    started, part = time.monotonic(), parse_shard(shard)
    views = check_source(experiments, ensemble, tta, threshold)
    check_output(output, estimate, images, masks_out)
    state, device = join_processes(), local_device()
    if images:
        choice, checkpoints = choose(experiments, ensemble, runs, views, threshold)
        return cut_out(images, masks_out, build_members(choice, checkpoints, device, backend), choice, device)
    photos = open_test(input_root, cars_file=cars)
    sample = read_sample(Archive(input_root).read_file("sample_submission.csv"))
    image_ids = match_sample(sample, photos, whole=cars is None)
    if estimate and threshold is None and not ensemble:
        threshold = HALF
    choice, checkpoints = choose(experiments, ensemble, runs, views, threshold)
    job = Job(photos, image_ids, checkpoints, choice, device, backend, batch_size, num_workers)
    networks = sum(map(len, checkpoints.values()))
    say(f"{choice}; {len(image_ids)} photos, {networks} networks x {len(choice.views)} views, {device.device}")
    if estimate:
        return print_estimate(job, hours or SESSION)
    manifest = job.manifest(part, block_size)
    blocks = Blocks(output, manifest, job.names[manifest.first : manifest.first + manifest.photos])
    end = started + 3600 * hours if hours is not None else math.inf
    predict_blocks(job, blocks, overwrite, state, end)
    if state.is_main_process and part.count == 1 and cars is None:
        note_submission(output, runs, command_line())


def check_source(
    experiments: list[str] | None, ensemble: Path | None, tta: str | None, threshold: float | None
) -> list[str]:
    """The views to use where no ensemble's file says them.

    Raises InputError unless either experiments are named or an ensemble's file, which holds all the rest.
    """
    if bool(experiments) == bool(ensemble):
        raise InputError("give names of experiments, or --ensemble runs/ensemble.json: one of the two")
    if ensemble and (tta is not None or threshold is not None):
        raise InputError(f"--ensemble: {ensemble} holds views and threshold; leave out --tta and --threshold")
    return parse_views("hflip" if tta is None else tta)


def check_output(output: Path | None, estimate: bool, images: Path | None, masks_out: Path | None) -> None:
    """Raises InputError unless it is clear where to write what."""
    if (images is None) != (masks_out is None):
        raise InputError("--images and --masks-out belong together: the folder to read, and the folder to write")
    if images and (output or estimate):
        raise InputError("--images: goes without --output and --estimate; no submission is written")
    if not images and not estimate:
        if output is None:
            raise InputError("--output: missing; name the CSV to be written")
        check_suffix(output)


def choose(
    experiments: list[str] | None, ensemble: Path | None, runs: Path, views: list[str], threshold: float | None
) -> tuple[Choice, dict[str, list[Checkpoint]]]:
    """What the ensemble's file holds, or all named experiments alike; and their checkpoints.

    Raises InputError if one is missing, or if no threshold is given and none was found out-of-fold.
    """
    if ensemble:
        choice, paths = read_ensemble(ensemble, runs)
        return choice, load_all(paths)
    checkpoints = load_all({experiment: find_checkpoints(runs, experiment) for experiment in experiments})
    if threshold is None:
        threshold = choose_threshold(runs, checkpoints, views)
    weights = dict.fromkeys(checkpoints, 1 / len(checkpoints))
    return Choice(experiments=weights, views=views, threshold=threshold), checkpoints


def cut_out(images: Path, masks_out: Path, members: list[Member], choice: Choice, device: Device) -> None:
    """Masks and cut-outs of this process's share of a folder. Ends the script with status 1 if any is unreadable."""
    for member in members:
        if name := member.fit.boxes_from:
            raise InputError(f"--images: an experiment that sees the boxes of {name} cannot see them here; give {name}")
    state, paths = process_state(), find_pictures(images)
    mine = paths[state.process_index :: state.num_processes]
    unreadable = write_cutouts(members, mine, masks_out, choice, device)
    print(f"{masks_out}: masks and cut-outs of {len(mine) - unreadable} photos, threshold {choice.threshold:g}")
    if unreadable:
        raise typer.Exit(1)


def join_processes() -> Processes:
    """The processes of torchrun. They wait a week for each other: none knows how long the others' photos take."""
    state = process_state(timeout=timedelta(days=7))
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


def load_all(paths: dict[str, list[Path]]) -> dict[str, list[Checkpoint]]:
    return {experiment: [load_checkpoint(path) for path in folds] for experiment, folds in paths.items()}


def predict_blocks(job: Job, blocks: Blocks, overwrite: bool, state: Processes, end: float) -> None:
    """Predicts this process's share of what is missing; the main process writes the file when all is there.

    Ends the script with status 3 if something is missing when all processes have come to their end.
    """
    mine = blocks.share(state, overwrite)
    chosen = [job.image_ids[place] for block in mine for place in blocks.places_of(block)]
    seconds = blocks.fill(mine, job.rows(chosen), end)
    state.wait_for_everyone()
    left = len(blocks.remaining())
    state.wait_for_everyone()
    if left:
        there = f"{len(blocks) - left} of {len(blocks)} blocks are in {blocks.folder}"
        say(f"{blocks.output}: stopped before it is whole, {there}; give the same command to continue")
        raise typer.Exit(STOPPED)
    if state.is_main_process:
        blocks.finish()
        pace = len(chosen) * state.num_processes / seconds
        print(
            f"{blocks.output}: {len(blocks.names)} rows, checked; {seconds:.0f} s, {pace:.2f} photos a second, "
            f"peak memory {job.device.peak_memory()}"
        )


def print_estimate(job: Job, hours: float) -> None:
    """Measures photos from all of the sample, evenly: one car's masks are all alike."""
    photos, enough = len(job.image_ids), ESTIMATE_BATCHES * job.batch_size
    rows = job.rows(job.image_ids[:: max(photos // enough, 1)][:enough])
    found = measure(rows, first=job.batch_size, enough=enough, seconds=ESTIMATE_SECONDS)
    plain, packed = found.gigabytes(photos)
    print(f"{found.rate:.2f} photos a second, measured on {found.photos}")
    print(f"{found.hours(photos):.2f} hours for {photos} photos on this device")
    print(f"peak memory {job.device.peak_memory()}")
    print(f"CSV {plain:.3f} GB, compressed {packed:.3f} GB")
    print(f"{found.shards(photos, hours)} shards of at most {hours:g} hours")


if __name__ == "__main__":
    run(main)
