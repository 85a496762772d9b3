"""Live curves of a run, by accelerate's tracker for TensorBoard: after each epoch a point of every curve."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.tracking import get_available_trackers

from carvana.errors import InputError
from carvana.training.learner import Learner


def check_tracker(name: str) -> None:
    """Raises InputError if there is no such tracker, or if its package is not installed."""
    if name not in ("none", "tensorboard"):
        raise InputError(f"--tracker {name}: choose from none, tensorboard")
    if name != "none" and name not in map(str, get_available_trackers()):
        raise InputError(f"--tracker {name}: the package is not installed; pip install {name}")


@contextmanager
def tracking(learner: Learner) -> Iterator[None]:
    """Opens `<fold>/tensorboard/` while the block trains. An epoch that is repeated after a kill is shown once."""
    accelerator, epoch = learner.accelerator, learner.position.epoch
    if accelerator.log_with and epoch < learner.config.epochs and accelerator.is_main_process:
        # Without the config: each start would add a folder, shown as one more run; run.json has it.
        accelerator.init_trackers("tensorboard", None, {"tensorboard": {"purge_step": epoch + 1}})
    try:
        yield
    finally:  # not `end_training()`, which would also end the group of processes, and with it the next fold
        for tracker in accelerator.trackers:
            tracker.finish()


def log_epoch(learner: Learner, record: dict) -> None:
    """Writes an epoch's record; the axis of all curves is the epoch, 1 for the first, whatever its stage.

    The rates are of its last step: `optim.lr` on its schedule, and the largest of the encoder's, if it has any.
    """
    curves = {
        "train/loss": record["loss"],
        "train/skipped_steps": record["skipped_steps"],
        "train/photos_per_second": record["train_photos"] / max(record["train_seconds"], 0.01),
    }
    if "dice" in record:
        curves |= {"val/dice": record["dice"], "val/worst_dice": record["worst"]}
    for group in learner.optimizer.param_groups:
        name = "rate/encoder" if group["encoder"] else "rate/lr"
        curves[name] = max(group["lr"], curves.get(name, 0.0))
    learner.accelerator.log(curves, record["epoch"])
