"""One run: epochs with validation, the best checkpoint, and a state to resume from."""

import time

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, set_seed
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, DistributedSampler

from carvana.checkpoint import save_checkpoint
from carvana.config import Config
from carvana.dataset import TrainSet, quiet_worker
from carvana.device import Device
from carvana.engine import Learner, OutOfTime, check_clock, train_one_epoch
from carvana.images import Photos
from carvana.inference import Member, predict_photos
from carvana.log import read_records, say, write_records
from carvana.losses import weighted_sum
from carvana.metrics import dice
from carvana.models import build_model
from carvana.optim import build_optimizer
from carvana.run import Fold, chosen_precision, prepare_folder, refuse_conflict
from carvana.state import Progress, load_state, save_state
from carvana.tta import TTA

THRESHOLD = 0.5  # of validation; the submission's is chosen out-of-fold


def train_fold(
    config: Config, fold: Fold, resume: bool = False, overwrite: bool = False, deadline: float = float("inf")
) -> bool:
    """Trains until the last epoch, or stops cleanly before `deadline` (of `time.monotonic()`); True if finished.

    Leaves in `fold.folder`: best.safetensors (averaged weights of the best epoch), run.json (what the run is),
    log.jsonl (a line an epoch) and state/ (what `resume` continues from, on a CPU to the same weights). Raises
    InputError as `refuse_conflict` does.
    """
    learner = build_learner(config)
    accelerator = learner.accelerator
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            refuse_conflict(config, fold, resume, overwrite)
            prepare_folder(config, fold, overwrite)
    if resume and load_state(accelerator, fold.folder / "state"):
        say(f"fold {fold.number}: continuing after epoch {learner.progress.epoch}")
    records = read_records(fold.folder / "log.jsonl")[: learner.progress.epoch]
    try:
        while learner.progress.epoch < config.train.epochs:
            longest = max((record["train_seconds"] + record["val_seconds"] for record in records), default=0)
            check_clock(accelerator, deadline, 1.05 * longest)  # a margin for writing
            records.append(run_epoch(learner, fold, deadline))
            keep_epoch(learner, fold, records)
    except OutOfTime:
        saved = f"--resume continues from {fold.folder}" if records else "nothing saved: not even one epoch fits"
        say(f"fold {fold.number}: out of time after {len(records)} of {config.train.epochs} epochs; {saved}")
        return False
    say(f"fold {fold.number}: finished, best Dice {learner.progress.best_dice:.5f}, in {fold.folder}")
    return True


def build_learner(config: Config) -> Learner:
    """Model, averaged model, optimizer and loss, on the device and in the precision that are there."""
    set_seed(config.train.seed)
    accelerator = Accelerator(mixed_precision=chosen_precision(config))
    model = build_model(config.model).to(accelerator.device, memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=config.optim.ema_decay, use_warmup=True)
    optimizer = build_optimizer(model, config.optim, accelerator.num_processes)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = Progress(micro_batch=config.train.micro_batch or config.train.batch_size)
    accelerator.register_for_checkpointing(ema.module, state)
    return Learner(accelerator, model, ema, optimizer, weighted_sum(config.loss), state, config)


def run_epoch(learner: Learner, fold: Fold, deadline: float) -> dict:
    """Trains and validates once; returns the epoch's record. Random numbers depend on seed and epoch alone."""
    accelerator, state, train = learner.accelerator, learner.progress, learner.config.train
    set_seed(train.seed + 1000 * (state.epoch + 1), device_specific=True)
    started = time.monotonic()
    record = train_one_epoch(learner, train_loader(learner, fold.train), deadline)
    trained = time.monotonic()
    scores = validate(learner, fold.val, deadline)
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


def validate(learner: Learner, photos: Photos, deadline: float = float("inf")) -> dict[str, float]:
    """Dice by image_id of the averaged model, at photo size; each photo once, shared among the processes."""
    accelerator, config, model = learner.accelerator, learner.config, learner.ema.module.eval()
    broadcast(list(model.buffers()))  # BatchNorm's statistics are each process's own; the first one's are kept
    image_ids = photos.image_ids[accelerator.process_index :: accelerator.num_processes]
    predictions = predict_photos(
        [Member(config.data.geometry, TTA(model))], photos, image_ids,
        Device(accelerator.device, accelerator.mixed_precision), masks=True, description="validate",
        batch_size=config.train.batch_size, num_workers=config.data.num_workers,
    )  # fmt: skip
    scores = []
    for image_id, probs, mask in predictions:
        scores.append((image_id, dice(probs >= THRESHOLD, mask)))
        if accelerator.num_processes == 1:  # several have different numbers of photos
            check_clock(accelerator, deadline)
    return dict(sorted(gather_object(scores)))


def keep_epoch(learner: Learner, fold: Fold, records: list[dict]) -> None:
    """Writes checkpoint (if it is the best), log and state, in this order.

    Only the state, which is renamed into place last, says that an epoch is over. If a run is killed before, the
    resumed epoch writes the others again.
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
