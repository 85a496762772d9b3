"""One run: epochs with validation, the best checkpoint, and a state to resume from."""

import time
from contextlib import ExitStack

from accelerate.utils import set_seed
from accelerate.utils.memory import clear_device_cache

from carvana.config import Config, differences
from carvana.data.cache import PhotoCache
from carvana.data.images import Photos
from carvana.device import process_state, share
from carvana.log import alone_in, read_records, say, write_json, write_records
from carvana.models.checkpoint import save_checkpoint
from carvana.training.batches import shared_cache, train_loader
from carvana.training.budget import Plan, plan_fold
from carvana.training.engine import OutOfTime, check_clock, train_one_epoch
from carvana.training.learner import Learner, build_learner
from carvana.training.losses import weighted_sum
from carvana.training.run import Budget, prepare_folder, refuse_conflict, write_run
from carvana.training.split import Fold, initial_checkpoint, seen_cars, training_photos
from carvana.training.state import load_state, save_state, saved_states
from carvana.training.tracking import log_epoch, tracking
from carvana.training.validation import validate


def train_folds(
    config: Config, folds: list[Fold], photos: Photos, resume: bool = False, overwrite: bool = False,
    deadline: float = float("inf"), tracker: str = "none", budget: Budget | None = None,
) -> bool:  # fmt: skip
    """Trains one fold after another, once all photos and folders are known to be fit; True if all are finished."""
    process = process_state()
    if process.is_main_process:
        for fold in folds:
            refuse_conflict(config, fold, resume, overwrite, budget)
    photos.check(share(photos.image_ids, process.process_index, process.num_processes))
    process.wait_for_everyone()
    with ExitStack() as locks:
        for fold in folds if process.is_main_process else []:
            locks.enter_context(alone_in(fold.folder))
        for fold in folds:
            validation = f"validating on {len(fold.val_cars)}" if fold.val else "no validation"
            say(f"{fold}: training on {len(fold.train.cars)} cars, {validation}")
            finished = train_fold(config, fold, resume, overwrite, deadline, tracker, budget)
            clear_device_cache(garbage_collection=True)  # gives the fold's memory back
            if not finished:
                return False
    return True


def train_fold(
    config: Config, fold: Fold, resume: bool = False, overwrite: bool = False, deadline: float = float("inf"),
    tracker: str = "none", budget: Budget | None = None,
) -> bool:  # fmt: skip
    """Trains until the last epoch, or stops cleanly before `deadline` (of `time.monotonic()`); True if finished.

    With a budget it trains as many epochs as fit, in the shares of the config's stages. Leaves in `fold.folder` what
    docs/training.md lists. On a CPU `resume` continues to the same weights; a tracker changes nothing of them. Raises
    InputError as `refuse_conflict` and `plan_fold` do.
    """
    process = process_state()
    with process.main_process_first():
        if process.is_main_process:
            refuse_conflict(config, fold, resume, overwrite, budget)
    plan = budget and plan_fold(config, fold, budget, resume)
    config = plan.config if plan else config
    continued = resume and bool(saved_states(fold.folder / "state"))
    initial = None if continued else initial_checkpoint(config, fold)
    learner = build_learner(config, initial, tracker, fold.folder, pretrained=not continued)
    with process.main_process_first():
        if process.is_main_process:
            prepare_folder(fold, overwrite)
            write_run(config, fold, budget, plan and plan.facts())
    if continued:
        load_state(learner.accelerator, fold.folder / "state")
    learner.position.seen_cars = learner.position.seen_cars or seen_cars(config, fold)
    records = read_records(fold.folder / "log.jsonl")[: learner.position.epoch]
    if continued:
        now = machine_facts(learner)
        changed = differences({key: records[-1].get(key) for key in now}, now) if records else []
        say(f"{fold}: continuing after epoch {learner.position.epoch}{'; '.join(['', *changed])}")
    try:
        with tracking(learner):
            while learner.position.epoch < learner.config.epochs:
                train_stage(learner, fold, records, deadline, plan)
    except OutOfTime:
        saved = f"--resume continues from {fold.folder}" if records else "no epoch is done yet, --resume begins anew"
        say(f"{fold}: out of time after {len(records)} of {learner.config.epochs} epochs; {saved}")
        return note_end(learner, fold, finished=False)
    best = f"best Dice {learner.position.best_dice:.5f}, " if fold.val else ""
    say(f"{fold}: finished, {best}in {fold.folder}")
    return note_end(learner, fold, finished=True)


def note_end(learner: Learner, fold: Fold, finished: bool) -> bool:
    """Writes into end.json how a command ended: torchrun's own status is 1 whatever its processes say."""
    if learner.accelerator.is_main_process:
        write_json(fold.folder / "end.json", {"finished": finished, "epochs": learner.position.epoch})
    return finished


def machine_facts(learner: Learner) -> dict:
    """What a resumed run may change."""
    return {
        "device": learner.device.name, "precision": learner.device.precision,
        "memory_format": learner.memory_format, "processes": learner.accelerator.num_processes,
    }  # fmt: skip


def train_stage(learner: Learner, fold: Fold, records: list[dict], deadline: float, plan: Plan | None) -> None:
    """Trains the epochs of the stage in progress that are not done yet."""
    stage, done = learner.config.stage_of(learner.position.epoch)
    learner.loss = weighted_sum(stage.loss)
    if done == 0:
        learner.begin_stage()
    photos, longest = shared_cache(learner, training_photos(fold, stage), stage.data), 0.0
    while True:
        check_clock(learner, deadline, 1.05 * longest)  # a margin for writing
        records.append(run_epoch(learner, photos, fold, deadline))
        longest = max(longest, records[-1]["train_seconds"] + records[-1]["val_seconds"])  # here, and in this stage
        log_epoch(learner, records[-1])  # before the state: if killed between them, it is written again
        keep_epoch(learner, fold, records, plan)
        stage, done = learner.config.stage_of(learner.position.epoch)  # it may have fewer epochs now
        if done in (0, stage.train.epochs):
            return


def run_epoch(learner: Learner, photos: PhotoCache, fold: Fold, deadline: float) -> dict:
    """Trains once and validates, if that is to be; returns the epoch's record.

    Random numbers depend on seed and epoch alone.
    """
    position, stage = learner.position, learner.stage
    set_seed(stage.train.seed + 1000 * (position.epoch + 1), device_specific=True)
    learner.begin_epoch()
    started = time.monotonic()
    loader = train_loader(learner, photos, len(fold.train.image_ids))
    record = train_one_epoch(learner, loader, deadline)
    trained = time.monotonic()
    score = summarize(validate(learner, fold.val, deadline)) if fold.val else {}
    return {
        "epoch": position.epoch + 1, "step": position.step, **record, **score,
        "train_photos": len(loader.dataset), "size": stage.data.size, "micro_batch": position.micro_batch,
        "train_seconds": round(trained - started, 2), "val_seconds": round(time.monotonic() - trained, 2),
        **machine_facts(learner),
    }  # fmt: skip


def summarize(scores: dict[str, float]) -> dict:
    """The mean and the worst Dice of a validation, and its number of photos."""
    return {"dice": sum(scores.values()) / len(scores), "worst": min(scores.values()), "photos": len(scores)}


def keep_epoch(learner: Learner, fold: Fold, records: list[dict], plan: Plan | None) -> None:
    """Writes the checkpoint if it is the best, the log and, last, the state: it alone says that an epoch is over.

    Without validation only the last epoch's is written: no score would tell that a network is half trained. If the
    plan changes, the state is written before run.json: it can be continued with the former epochs, too.
    """
    position, record, stage = learner.position, records[-1], learner.stage
    position.epoch, dice, score = record["epoch"], record.get("dice"), ""
    better = position.epoch == learner.config.epochs if dice is None else dice > position.best_dice
    if dice is not None:
        position.best_dice = max(position.best_dice, dice)
        score = f"Dice {dice:.5f} on {record['photos']} photos{' (best)' if better else ''}, "
    if learner.accelerator.is_main_process:
        if better:
            save_checkpoint(
                fold.folder / "best.safetensors", learner.ema.module, stage, fold.number, position.epoch, dice,
                fold.digest, position.seen_cars, position.precisions,
            )  # fmt: skip
        write_records(fold.folder / "log.jsonl", records)
    replanned = plan is not None and plan.adapt(records)
    if replanned:
        learner.change_epochs(plan.config)
    save_state(learner.accelerator, fold.folder / "state", position.epoch)
    if replanned and learner.accelerator.is_main_process:
        write_run(plan.config, fold, plan.budget, plan.facts())
    minutes = sum(r["train_seconds"] + r["val_seconds"] for r in records) / 60
    say(f"{fold} epoch {position.epoch}/{learner.config.epochs}: loss {record['loss']:.4f}, {score}{minutes:.1f} min")
    if replanned:
        say(f"{fold}: the machine's pace has changed: {' + '.join(map(str, plan.epochs))} epochs now")
