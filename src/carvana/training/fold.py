"""One run: epochs with validation, the best checkpoint, and a state to resume from."""

import platform
import time
from contextlib import ExitStack

from accelerate.utils import gather_object, set_seed
from accelerate.utils.memory import clear_device_cache
from torch.utils.data import DataLoader, DistributedSampler

from carvana.config import Config, DataConfig, differences
from carvana.data.cache import PhotoCache
from carvana.data.dataset import TrainSet, collate
from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.data.loader import worker_options
from carvana.device import process_state, share
from carvana.log import alone_in, read_records, say, write_json, write_records
from carvana.training.averaging import average_epochs, keep_checkpoint, keep_for_average
from carvana.training.engine import OutOfTime, check_clock, train_one_epoch
from carvana.training.learner import Learner, build_learner
from carvana.training.losses import weighted_sum
from carvana.training.state import Fold, initial_checkpoint, load_state, prepare_folder, refuse_conflict, save_state
from carvana.training.tracking import log_epoch, tracking
from carvana.training.validation import validate

MACHINE = ("device", "precision", "memory_format", "processes")


def train_folds(
    config: Config, folds: list[Fold], photos: Photos, resume: bool = False, overwrite: bool = False,
    deadline: float = float("inf"), tracker: str = "none",
) -> bool:  # fmt: skip
    """Trains one fold after another, once all photos and folders are known to be fit; True if all are finished."""
    process = process_state()
    if process.is_main_process:
        for fold in folds:
            refuse_conflict(config, fold, resume, overwrite)
    photos.check(share(photos.image_ids, process.process_index, process.num_processes))
    process.wait_for_everyone()
    with ExitStack() as locks:
        for fold in folds if process.is_main_process else []:
            locks.enter_context(alone_in(fold.folder))
        for fold in folds:
            say(f"fold {fold.number}: training on {len(fold.train.cars)} cars, validating on {len(fold.val.cars)}")
            finished = train_fold(config, fold, resume, overwrite, deadline, tracker)
            clear_device_cache(garbage_collection=True)  # gives the fold's memory back
            if not finished:
                return False
    return True


def train_fold(
    config: Config, fold: Fold, resume: bool = False, overwrite: bool = False, deadline: float = float("inf"),
    tracker: str = "none",
) -> bool:  # fmt: skip
    """Trains until the last epoch, or stops cleanly before `deadline` (of `time.monotonic()`); True if finished.

    Leaves in `fold.folder` what docs/training.md lists. On a CPU `resume` continues to the same weights; a tracker
    changes nothing of them. Raises InputError as `refuse_conflict` does.
    """
    learner = build_learner(config, initial_checkpoint(config, fold), tracker, fold.folder)
    with learner.accelerator.main_process_first():
        if learner.accelerator.is_main_process:
            refuse_conflict(config, fold, resume, overwrite)
            prepare_folder(config, fold, overwrite)
    resumed = resume and load_state(learner.accelerator, fold.folder / "state")
    records = read_records(fold.folder / "log.jsonl")[: learner.position.epoch]
    if resumed:
        changed = differences({key: records[-1].get(key) for key in MACHINE}, machine_facts(learner)) if records else []
        say(f"fold {fold.number}: continuing after epoch {learner.position.epoch}{'; '.join(['', *changed])}")
    try:
        with tracking(learner):
            while learner.position.epoch < config.epochs:
                train_stage(learner, fold, records, deadline)
        average_epochs(learner, fold, deadline)
    except OutOfTime:
        saved = f"--resume continues from {fold.folder}" if records else "nothing saved: not even one epoch fits"
        say(f"fold {fold.number}: out of time after {len(records)} of {config.epochs} epochs; {saved}")
        return note_end(learner, fold, finished=False)
    say(f"fold {fold.number}: finished, best Dice {learner.position.best_dice:.5f}, in {fold.folder}")
    return note_end(learner, fold, finished=True)


def note_end(learner: Learner, fold: Fold, finished: bool) -> bool:
    """Writes into end.json how a command ended: torchrun's own status is 1 whatever its processes say."""
    if learner.accelerator.is_main_process:
        write_json(fold.folder / "end.json", {"finished": finished, "epochs": learner.position.epoch})
    return finished


def machine_facts(learner: Learner) -> dict:
    """What a resumed run may change."""
    device, processes = learner.device, learner.accelerator.num_processes
    return dict(zip(MACHINE, (device.name, device.precision, learner.memory_format, processes), strict=True))


def train_stage(learner: Learner, fold: Fold, records: list[dict], deadline: float) -> None:
    """Trains the epochs of the stage in progress that are not done yet."""
    stage, done = learner.config.stage_of(learner.position.epoch)
    learner.loss = weighted_sum(stage.loss)
    if done == 0:
        learner.position.best_dice = -1.0
    photos = shared_cache(learner, fold.train, stage.data)
    for number in range(done, stage.train.epochs):
        longest = max((r["train_seconds"] + r["val_seconds"] for r in records[-number:]), default=0)
        check_clock(learner, deadline, 1.05 * longest)  # a margin for writing
        records.append(run_epoch(learner, photos, fold, deadline))
        log_epoch(learner, records[-1])  # before the state: if killed between them, it is written again
        keep_epoch(learner, fold, records)


def shared_cache(learner: Learner, photos: Photos, data: DataConfig) -> PhotoCache:
    """One for all processes of a machine: the first one of them makes the file."""
    accelerator, machine = learner.accelerator, platform.node()
    cache = PhotoCache(photos, Fit.of(data), data.cache_gib if accelerator.is_local_main_process else 0)
    paths = dict(item for item in gather_object([(machine, cache.path)]) if item[1])
    return cache if cache.path else cache.join(paths.get(machine))


def run_epoch(learner: Learner, photos: PhotoCache, fold: Fold, deadline: float) -> dict:
    """Trains and validates once; returns the epoch's record. Random numbers depend on seed and epoch alone."""
    position, stage = learner.position, learner.stage
    set_seed(stage.train.seed + 1000 * (position.epoch + 1), device_specific=True)
    learner.begin_epoch()
    started = time.monotonic()
    loader = train_loader(learner, photos)
    record = train_one_epoch(learner, loader, deadline)
    trained = time.monotonic()
    scores = validate(learner, fold.val, deadline)
    return {
        "epoch": position.epoch + 1, "step": position.step, **record,
        "dice": sum(scores.values()) / len(scores), "worst": min(scores.values()), "photos": len(scores),
        "train_photos": len(loader.dataset), "size": stage.data.size, "micro_batch": position.micro_batch,
        "train_seconds": round(trained - started, 2), "val_seconds": round(time.monotonic() - trained, 2),
        **machine_facts(learner),
    }  # fmt: skip


def train_loader(learner: Learner, photos: PhotoCache) -> DataLoader:
    """This epoch's batches, this process's share of them."""
    accelerator, stage, epoch = learner.accelerator, learner.stage, learner.position.epoch
    dataset = TrainSet(photos, stage.data.augmentation, stage.train.seed, epoch, stage.data.crop)
    sampler = DistributedSampler(dataset, accelerator.num_processes, accelerator.process_index, seed=stage.train.seed)
    sampler.set_epoch(epoch)
    options = worker_options(stage.data.num_workers) | {"pin_memory": accelerator.device.type == "cuda"}
    return DataLoader(dataset, stage.train.batch_size, sampler=sampler, collate_fn=collate, **options)


def keep_epoch(learner: Learner, fold: Fold, records: list[dict]) -> None:
    """Writes the checkpoint if it is the best, the log and, last, the state: it alone says that an epoch is over."""
    position, record, stage = learner.position, records[-1], learner.stage
    better = record["dice"] > position.best_dice
    position.best_dice = max(position.best_dice, record["dice"])
    position.epoch = record["epoch"]
    if learner.accelerator.is_main_process:
        if better:
            keep_checkpoint(learner, fold, stage, record, fold.folder / "best.safetensors")
        if stage is learner.config:
            keep_for_average(learner, fold, record)
        write_records(fold.folder / "log.jsonl", records)
    save_state(learner.accelerator, fold.folder / "state", position.epoch)
    minutes = sum(r["train_seconds"] + r["val_seconds"] for r in records) / 60
    say(
        f"fold {fold.number} epoch {position.epoch}/{learner.config.epochs}: loss {record['loss']:.4f}, "
        f"Dice {record['dice']:.5f} on {record['photos']} photos{' (best)' if better else ''}, {minutes:.1f} min"
    )
