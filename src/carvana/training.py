"""One run: epochs with validation, the best checkpoint, and a state to resume from."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, set_seed
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, DistributedSampler

from carvana.checkpoint import save_checkpoint
from carvana.config import Config, differences, parse_config
from carvana.dataset import TrainSet, quiet_worker
from carvana.engine import Learner, OutOfTime, train_one_epoch
from carvana.errors import InputError
from carvana.folds import check_folds, folds_digest
from carvana.images import Photos
from carvana.inference import Device, Member, native_precision, predict_photos
from carvana.log import read_records, say, write_json, write_records
from carvana.losses import weighted_sum
from carvana.metrics import dice
from carvana.models import build_model
from carvana.optim import build_optimizer
from carvana.state import Progress, load_state, save_state, saved_states
from carvana.tta import TTA

THRESHOLD = 0.5  # of validation; the submission's is chosen out-of-fold


@dataclass(frozen=True)
class Fold:
    """What one run learns from and is validated on, and where its files go."""

    number: int
    train: Photos
    val: Photos
    digest: str
    folder: Path


def split_fold(photos: Photos, folds: pd.DataFrame, number: int, runs: Path, name: str) -> Fold:
    """Cars of fold `number` to validation, all others to training; `folds` is the whole table."""
    present = check_folds(folds, photos.cars)
    is_val = present["fold"] == number
    if not is_val.any():
        raise InputError(f"--fold {number}: the table has folds 0 to {present['fold'].max()}")
    train, val = photos.select(present.loc[~is_val, "car"]), photos.select(present.loc[is_val, "car"])
    return Fold(number, train, val, folds_digest(folds), runs / name / f"fold{number}")


def train_fold(
    config: Config, fold: Fold, resume: bool = False, overwrite: bool = False, deadline: float = float("inf")
) -> bool:
    """Trains until the last epoch, or cleanly until before `deadline` (of `time.monotonic()`); True if finished.

    Leaves in `fold.folder`: best.safetensors (averaged weights of the best epoch), config.json, log.jsonl (a line
    an epoch) and state/ (what `resume` continues from, to the same result). Raises InputError if a run lies there
    and neither `resume` nor `overwrite` is given, or if it has another configuration.
    """
    learner = build_learner(config)
    with learner.accelerator.main_process_first():
        prepare_folder(fold.folder, config, resume, overwrite, learner.accelerator.is_main_process)
    if resume and load_state(learner.accelerator, fold.folder / "state"):
        say(f"fold {fold.number}: continuing after epoch {learner.progress.epoch}")
    records = read_records(fold.folder / "log.jsonl")[: learner.progress.epoch]
    while learner.progress.epoch < config.train.epochs:
        longest = max((record["train_seconds"] + record["val_seconds"] for record in records), default=0)
        if time.monotonic() + longest > deadline:
            return stopped(fold, learner.progress.epoch)
        try:
            record = run_epoch(learner, fold, deadline)
        except OutOfTime:
            return stopped(fold, learner.progress.epoch)
        records.append(record)
        keep_epoch(learner, fold, records)
    say(f"fold {fold.number}: finished, best Dice {learner.progress.best_dice:.5f}, in {fold.folder}")
    return True


def build_learner(config: Config) -> Learner:
    """Model, averaged model, optimizer and loss, on the device and in the precision that are there."""
    set_seed(config.train.seed)
    precision = native_precision(PartialState().device) if config.train.precision == "auto" else config.train.precision
    accelerator = Accelerator(mixed_precision=precision)
    model = build_model(config.model).to(accelerator.device, memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
    optimizer = build_optimizer(model, config.optim, accelerator.num_processes)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = Progress(micro_batch=config.train.micro_batch or config.train.batch_size)
    accelerator.register_for_checkpointing(ema.module, state)
    return Learner(accelerator, model, ema, optimizer, weighted_sum(config.loss), state, config)


def prepare_folder(folder: Path, config: Config, resume: bool, overwrite: bool, is_main: bool) -> None:
    """Refuses to touch a run that lies there, unless told to resume or to overwrite it."""
    if not is_main:
        return
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    if saved_states(folder / "state"):
        if not resume:
            raise InputError(f"{folder}: holds a run; continue it with --resume or replace it with --overwrite")
        before = parse_config(*_read_config(folder / "config.json"))
        if changed := differences(before, config):
            raise InputError(f"{folder}: has another configuration, so it cannot be resumed: {'; '.join(changed)}")
    else:
        write_json(folder / "config.json", config.model_dump(mode="json"))


def run_epoch(learner: Learner, fold: Fold, deadline: float) -> dict:
    """Trains and validates once; returns the epoch's record. Random numbers depend on seed and epoch alone."""
    accelerator, state, train = learner.accelerator, learner.progress, learner.config.train
    set_seed(train.seed + 1000 * (state.epoch + 1), device_specific=True)
    started = time.monotonic()
    record = train_one_epoch(learner, train_loader(learner, fold.train), deadline)
    trained = time.monotonic()
    scores = validate(learner, fold.val)
    state.epoch += 1
    return {
        "epoch": state.epoch,
        "step": state.step,
        **record,
        "dice": sum(scores.values()) / len(scores),
        "worst": min(scores.values()),
        "photos": len(scores),
        "micro_batch": state.micro_batch,
        "train_seconds": round(trained - started, 2),
        "val_seconds": round(time.monotonic() - trained, 2),
        "device": str(accelerator.device),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
    }


def train_loader(learner: Learner, photos: Photos) -> DataLoader:
    """This epoch's batches, this process's share of them."""
    accelerator, config, epoch = learner.accelerator, learner.config, learner.progress.epoch
    dataset = TrainSet(photos, config.data.geometry, config.data.augmentation, config.train.seed, epoch)
    sampler = DistributedSampler(dataset, accelerator.num_processes, accelerator.process_index, seed=config.train.seed)
    sampler.set_epoch(epoch)
    return DataLoader(
        dataset, config.train.batch_size, sampler=sampler, num_workers=config.data.num_workers,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=quiet_worker,
    )  # fmt: skip


def validate(learner: Learner, photos: Photos) -> dict[str, float]:
    """Dice by image_id of the averaged model, at photo size; each photo once, shared among the processes."""
    accelerator, config = learner.accelerator, learner.config
    image_ids = photos.image_ids[accelerator.process_index :: accelerator.num_processes]
    member = Member(config.data.geometry, TTA(learner.ema.module.eval()))
    predictions = predict_photos(
        [member], photos, image_ids, Device(accelerator.device, accelerator.mixed_precision), masks=True,
        batch_size=config.train.batch_size, num_workers=config.data.num_workers, description="validate",
    )  # fmt: skip
    scores = [(p.image_id, dice(p.probs >= THRESHOLD, p.mask)) for p in predictions]
    return dict(sorted(gather_object(scores)))


def keep_epoch(learner: Learner, fold: Fold, records: list[dict]) -> None:
    """Writes checkpoint (if it is the best), log and state, in this order.

    Whatever lies between is written again by the resumed epoch, with the same content: only the state, which is
    renamed into place last, says that an epoch is over.
    """
    state, record = learner.progress, records[-1]
    better = record["dice"] > state.best_dice
    state.best_dice = max(state.best_dice, record["dice"])
    if learner.accelerator.is_main_process:
        if better:
            path = fold.folder / "best.safetensors"
            model = learner.ema.module
            save_checkpoint(path, model, learner.config, fold.number, state.epoch, record["dice"], fold.digest)
        write_records(fold.folder / "log.jsonl", records)
    save_state(learner.accelerator, fold.folder / "state", state.epoch)
    minutes = sum(r["train_seconds"] + r["val_seconds"] for r in records) / 60
    say(
        f"fold {fold.number} epoch {state.epoch}/{learner.config.train.epochs}: loss {record['loss']:.4f}, "
        f"Dice {record['dice']:.5f} on {record['photos']} photos{' (best)' if better else ''}, {minutes:.1f} min"
    )


def stopped(fold: Fold, epoch: int) -> bool:
    say(f"fold {fold.number}: out of time after epoch {epoch}; --resume continues from {fold.folder}")
    return False


def _read_config(path: Path) -> tuple[dict, str]:
    try:
        return json.loads(path.read_text()), str(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); start anew with --overwrite") from None
