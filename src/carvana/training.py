"""One run: epochs with validation, the best checkpoint, and a state to resume from."""

import time
from dataclasses import replace

import numpy as np
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, DistributedSampler

from carvana.averaging import average_epochs, keep_checkpoint, keep_for_average
from carvana.cache import PhotoCache
from carvana.config import Config
from carvana.dataset import TrainSet, worker_options
from carvana.device import Device
from carvana.engine import OutOfTime, check_clock, train_one_epoch
from carvana.learner import Learner, build_learner
from carvana.log import read_records, say, write_records
from carvana.losses import weighted_sum
from carvana.panel import Panel
from carvana.run import Fold, initial_checkpoint, prepare_folder, refuse_conflict
from carvana.state import load_state, save_state
from carvana.tracking import log_epoch, tracking
from carvana.validation import validate
from carvana.windows import box_checkpoint, find_windows


def train_fold(
    config: Config,
    fold: Fold,
    resume: bool = False,
    overwrite: bool = False,
    deadline: float = float("inf"),
    tracker: str = "none",
) -> bool:
    """Trains until the last epoch, or stops cleanly before `deadline` (of `time.monotonic()`); True if finished.

    Leaves in `fold.folder`: best.safetensors (averaged weights of the last stage's best epoch), run.json (what the
    run is), log.jsonl (a line an epoch), state/ (what `resume` continues from, on a CPU to the same weights) and what
    a tracker writes, which changes nothing of the run. Raises InputError as `refuse_conflict` does.
    """
    learner = build_learner(config, initial_checkpoint(config, fold), tracker, fold.folder)
    fold = find_val_cars(config, fold, Device(learner.accelerator.device, learner.accelerator.mixed_precision))
    with learner.accelerator.main_process_first():
        if learner.accelerator.is_main_process:
            refuse_conflict(config, fold, resume, overwrite)
            prepare_folder(config, fold, overwrite)
    if resume and load_state(learner.accelerator, fold.folder / "state"):
        say(f"fold {fold.number}: continuing after epoch {learner.progress.epoch}")
    records = read_records(fold.folder / "log.jsonl")[: learner.progress.epoch]
    try:
        with tracking(learner, fold) as panel:
            while learner.progress.epoch < config.epochs:
                train_stage(learner, fold, records, deadline, panel)
        if config.train.average != "none":
            average_epochs(learner, fold, deadline)
    except OutOfTime:
        saved = f"--resume continues from {fold.folder}" if records else "nothing saved: not even one epoch fits"
        say(f"fold {fold.number}: out of time after {len(records)} of {config.epochs} epochs; {saved}")
        return False
    say(f"fold {fold.number}: finished, best Dice {learner.progress.best_dice:.5f}, in {fold.folder}")
    return True


def find_val_cars(config: Config, fold: Fold, device: Device) -> Fold:
    """The fold, with windows of its validation photos for the stages that see boxes; in training masks give them."""
    val = fold.val
    for stage in config.stages:
        fit, number = stage.data.geometry, stage.data.num_workers
        if fit.boxes_from:
            path = box_checkpoint(fit, fold.folder, fold.digest)
            val = find_windows(val, val.image_ids, fit, [path], device, stage.train.batch_size, number)
    return replace(fold, val=val)


def train_stage(learner: Learner, fold: Fold, records: list[dict], deadline: float, panel: Panel | None) -> None:
    """Trains the epochs of the stage in progress that are not done yet."""
    stage, done = learner.config.stage_of(learner.progress.epoch)
    learner.loss = weighted_sum(stage.loss)
    if done == 0:
        learner.begin_stage()
    photos = PhotoCache(fold.train, stage.data.geometry, stage.data.cache_gib)
    for number in range(done, stage.train.epochs):
        like_this = records[-number:] if number else records
        longest = max((record["train_seconds"] + record["val_seconds"] for record in like_this), default=0)
        check_clock(learner.accelerator, deadline, 1.05 * longest)  # a margin for writing
        records.append(run_epoch(learner, photos, fold, deadline, panel))
        log_epoch(learner, records[-1], panel)  # before the state: if killed between them, it is written again
        keep_epoch(learner, fold, records)


def run_epoch(learner: Learner, photos: PhotoCache, fold: Fold, deadline: float, panel: Panel | None) -> dict:
    """Trains and validates once; returns the epoch's record. Random numbers depend on seed and epoch alone."""
    accelerator, state, stage = learner.accelerator, learner.progress, learner.stage
    set_seed(stage.train.seed + 1000 * (state.epoch + 1), device_specific=True)
    started = time.monotonic()
    loader = train_loader(learner, photos)
    record = train_one_epoch(learner, loader, deadline)
    trained = time.monotonic()
    scores = validate(learner, fold.val, deadline, panel)
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        **record,
        "dice": sum(scores.values()) / len(scores),
        "worst": min(scores.values()),
        "photos": len(scores),
        "train_photos": len(loader.dataset),
        "size": stage.data.size,
        "micro_batch": state.micro_batch,
        "train_seconds": round(trained - started, 2),
        "val_seconds": round(time.monotonic() - trained, 2),
        "device": str(accelerator.device),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
    }


def train_loader(learner: Learner, photos: PhotoCache) -> DataLoader:
    """This epoch's batches, this process's share of them."""
    accelerator, stage, epoch = learner.accelerator, learner.stage, learner.progress.epoch
    order = [*range(len(photos)), *hardest(learner.progress.photo_losses, stage.train.replay)]
    dataset = TrainSet(photos, stage.data.augmentation, stage.train.seed, epoch, stage.data.crop, order)
    sampler = DistributedSampler(dataset, accelerator.num_processes, accelerator.process_index, seed=stage.train.seed)
    sampler.set_epoch(epoch)
    return DataLoader(
        dataset, stage.train.batch_size, sampler=sampler, pin_memory=accelerator.device.type == "cuda",
        **worker_options(stage.data.num_workers),
    )  # fmt: skip


def hardest(photo_losses: list[float], share: float) -> list[int]:
    """The photos with the largest losses: this share of all of them."""
    losses = np.nan_to_num(photo_losses)
    return np.argsort(-losses, kind="stable")[: round(share * len(losses))].tolist()


def keep_epoch(learner: Learner, fold: Fold, records: list[dict]) -> None:
    """Writes checkpoint (if it is the best), log and state, in this order.

    Only the state, which is renamed into place last, says that an epoch is over. If a run is killed before, the
    resumed epoch writes the others again.
    """
    state, record, stage = learner.progress, records[-1], learner.stage
    better = record["dice"] > state.best_dice
    state.best_dice = max(state.best_dice, record["dice"])
    state.epoch = record["epoch"]
    if learner.accelerator.is_main_process:
        if better:
            keep_checkpoint(learner, fold, stage, record, fold.folder / "best.safetensors")
        if stage is learner.config:
            keep_for_average(learner, fold, record)
        write_records(fold.folder / "log.jsonl", records)
    save_state(learner.accelerator, fold.folder / "state", state.epoch)
    minutes = sum(r["train_seconds"] + r["val_seconds"] for r in records) / 60
    say(
        f"fold {fold.number} epoch {state.epoch}/{learner.config.epochs}: loss {record['loss']:.4f}, "
        f"Dice {record['dice']:.5f} on {record['photos']} photos{' (best)' if better else ''}, {minutes:.1f} min"
    )
