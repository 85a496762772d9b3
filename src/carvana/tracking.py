"""Live curves of a run, through accelerate's trackers: after each epoch a point of every curve, and a few photos."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers

from carvana.errors import InputError
from carvana.learner import Learner
from carvana.panel import Panel
from carvana.run import Fold

TRACKERS = ("none", "tensorboard", "wandb")
PROJECT = "carvana-image-masking"  # on Weights & Biases
IMAGE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}}  # its default is NCHW; the others know no such option


def check_tracker(name: str) -> None:
    """Raises InputError if there is no such tracker, or if its package is not installed."""
    if name not in TRACKERS:
        raise InputError(f"--tracker {name}: choose from {', '.join(TRACKERS)}")
    if name != "none" and name not in map(str, get_available_trackers()):
        raise InputError(f"--tracker {name}: the package is not installed; pip install {name}")


@contextmanager
def tracking(learner: Learner, fold: Fold) -> Iterator[Panel | None]:
    """What the block's epochs are to show of validation; None if the run has no tracker or no epoch left."""
    accelerator = learner.accelerator
    if not accelerator.log_with or learner.progress.epoch == learner.config.epochs:
        yield None
        return
    if accelerator.is_main_process:
        start_trackers(learner, fold)
    try:
        yield Panel(fold.val)
    finally:  # not `end_training()`, which would also end the group of processes, and with it the next fold
        for tracker in accelerator.trackers:
            tracker.finish()


def start_trackers(learner: Learner, fold: Fold) -> None:
    """Opens `<fold>/tensorboard/`, or a run on Weights & Biases, after the epochs that are done.

    An epoch that was written and then, after a kill, repeated has its first points hidden: TensorBoard is told to
    forget everything from this epoch on, Weights & Biases takes no step twice.
    """
    accelerator, name = learner.accelerator, str(learner.accelerator.log_with[0])
    if name == "tensorboard":  # no config: each start would add a folder, shown as one more run; run.json has it
        accelerator.init_trackers(name, init_kwargs={name: {"purge_step": learner.progress.epoch + 1}})
        return
    options = {
        "name": f"{learner.config.name}/{fold.folder.name}", "dir": str(fold.folder), "id": wandb_id(fold.folder),
        "resume": "allow",
    }  # fmt: skip
    accelerator.init_trackers(PROJECT, learner.config.model_dump(mode="json"), {name: options})


def wandb_id(folder: Path) -> str:
    """By which a resumed run is continued; made once for a folder."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def log_epoch(learner: Learner, record: dict, panel: Panel | None) -> None:
    """Writes an epoch's record and panel; the axis of all curves is the epoch, 1 for the first, whatever its stage."""
    accelerator, epoch = learner.accelerator, record["epoch"]
    for tracker in accelerator.trackers:  # of the main process; the others have none
        tracker.log_images({"val/photos": panel.sheet[None]}, epoch, **IMAGE_OPTIONS.get(tracker.name, {}))
    accelerator.log(curves(record) | rates(learner.optimizer), epoch)  # after the images: this flushes


def curves(record: dict) -> dict[str, float]:
    """What is drawn of a record of log.jsonl."""
    return {
        "train/loss": record["loss"],
        "train/skipped_steps": record["skipped_steps"],
        "train/photos_per_second": record["train_photos"] / max(record["train_seconds"], 0.01),
        "val/dice": record["dice"],
        "val/worst_dice": record["worst"],
    }


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Rates of the epoch's last step: `optim.lr` on its schedule, and the largest of the encoder's, if it has any."""
    groups = {"rate/encoder": [], "rate/lr": []}
    for group in optimizer.param_groups:
        groups["rate/encoder" if group["encoder"] else "rate/lr"].append(group["lr"])
    return {name: max(some) for name, some in groups.items() if some}
