"""Predicts the test photos and writes the CSV for Kaggle: all folds of all named experiments, averaged.

`python src/make_submission.py unet_lite0 --tta hflip --output submissions/unet_lite0.csv.gz`

What is predicted is kept in `<output>.parts/` until the file is whole: after a crash the same command continues. All
GPUs share the work. Several machines take a `--shard` each, which `src/submission.py merge` joins. With `--labels`
or `--soft` what is predicted can be trained on: `data.pseudo`.
"""

from pathlib import Path
from typing import Annotated

import typer

from carvana import command
from carvana.errors import InputError

HALF = 0.5  # a threshold good enough to estimate with
SESSION = 11.5  # hours; Kaggle ends a session after 12


def main(
    experiments: command.NamesArgument = None,
    output: Annotated[Path | None, typer.Option(help="The CSV to write: .csv, .csv.gz or .zip.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts, which submission.py merge joins.")] = "1/1",
    estimate: Annotated[bool, typer.Option("--estimate", help="Only measure a few photos and print figures.")] = False,
    block_size: Annotated[int, typer.Option(min=1, help="Photos kept at a time: a crash loses no more.")] = 128,
    labels: Annotated[Path | None, typer.Option(help="A CSV to write beside: how sure each mask is.")] = None,
    soft: Annotated[Path | None, typer.Option(help="A zip to write beside: the probabilities, as PNGs.")] = None,
    ensemble: command.EnsembleOption = None, tta: command.TtaOption = None, threshold: command.ThresholdOption = None,
    fold: command.NetworksOption = None, hours: command.HoursOption = None, overwrite: command.OverwriteOption = False,
    input_root: command.InputOption = command.INPUT, runs: command.RunsOption = command.RUNS,
    cars: command.CarsOption = None, batch_size: command.BatchOption = 4, num_workers: command.WorkersOption = 2,
    backend: command.BackendOption = "torch", count: command.DevicesOption = None,
    precision: command.PrecisionOption = "auto",
) -> None:  # fmt: skip
    from carvana.data.images import open_test
    from carvana.data.labels import LABELS, SOFT
    from carvana.data.loader import Loading
    from carvana.device import open_devices
    from carvana.log import say
    from carvana.models.checkpoint import photos_of
    from carvana.submission.blocks import Blocks, check_names
    from carvana.submission.choice import choose
    from carvana.submission.job import Job, match_sample, predict_blocks, read_names
    from carvana.submission.journal import note_submission

    end = command.end_of(hours)
    if not output and not estimate:
        raise InputError("--output: missing; name the CSV to be written")
    beside = {kind: path for kind, path in ((LABELS, labels), (SOFT, soft)) if path}
    check_names(output, beside)
    if estimate and threshold is None and not ensemble:
        threshold = HALF
    devices = open_devices(count, precision)
    choice, networks = choose(experiments, ensemble, runs, tta, threshold, fold)
    quality = photos_of(network.path for folds in networks.values() for network in folds)
    photos = open_test(input_root, cars_file=cars, quality=quality)
    sample = read_names(input_root, bool(beside))
    image_ids = match_sample(sample, photos, whole=cars is None) if sample else photos.image_ids
    loading = Loading(batch_size, num_workers)
    job = Job(photos, image_ids, networks, choice, devices[0], backend, loading, tuple(beside))
    passes = f"{sum(map(len, networks.values()))} networks x {len(choice.views)} views"
    say(f"{choice}; {len(image_ids)} photos, {passes}, {job.device.device}")
    if estimate:
        return print(*job.estimate_lines(SESSION if hours is None else hours, len(devices)), sep="\n")
    manifest = job.manifest(shard, block_size)
    names = job.names[manifest.first : manifest.first + manifest.photos]
    blocks = Blocks(output, manifest, names, beside, job.seen_cars if beside else None)
    figures = predict_blocks(job, devices, blocks, overwrite, end)
    if figures is None:
        raise typer.Exit(command.STOPPED)
    print(f"{output}: {len(blocks.names)} rows, checked; {figures}")
    if shard == "1/1" and cars is None and sample:
        note_submission(output, runs, command.command_line())


if __name__ == "__main__":
    command.run(main)
