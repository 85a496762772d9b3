"""One model from several epochs: the mean of the last ones' weights (Izmailov et al., 2018)."""

import shutil
from pathlib import Path

from carvana.config import Config
from carvana.log import say
from carvana.models.checkpoint import average_weights, save_checkpoint
from carvana.training.learner import Learner
from carvana.training.split import Fold
from carvana.training.validation import validate


def keep_checkpoint(learner: Learner, fold: Fold, stage: Config, record: dict, path: Path) -> None:
    """Writes the averaged weights (EMA) as a checkpoint of `stage`, scored as `record` says."""
    position = learner.position
    save_checkpoint(
        path, learner.ema.module, stage, fold.number, record["epoch"], record.get("dice"), fold.digest,
        position.seen_cars, position.precisions,
    )  # fmt: skip


def keep_for_average(learner: Learner, fold: Fold, record: dict) -> None:
    """Keeps the epoch's weights as long as they may be among those that are averaged."""
    if count := learner.config.train.average:
        path = fold.folder / "epochs" / f"epoch-{record['epoch']:04d}.safetensors"
        keep_checkpoint(learner, fold, learner.config, record, path)
        for old in sorted(path.parent.glob("epoch-*.safetensors"))[:-count]:
            old.unlink()


def average_epochs(learner: Learner, fold: Fold, deadline: float) -> None:
    """Makes the mean of the kept epochs the run's checkpoint if it is better, and removes the epochs.

    Without validation it is taken to be better, as in the paper.
    """
    folder, accelerator, position = fold.folder / "epochs", learner.accelerator, learner.position
    paths, done = sorted(folder.glob("epoch-*.safetensors")), folder.with_name("averaged")
    if accelerator.is_main_process:
        shutil.rmtree(done, ignore_errors=True)
    if not paths:
        return
    learner.ema.module.load_state_dict(average_weights(paths))
    better, mean, score = True, None, ""
    if fold.val:
        scores = validate(learner, fold.val, deadline)
        mean = sum(scores.values()) / len(scores)
        better = mean > position.best_dice
        position.best_dice = max(position.best_dice, mean)
        score = f", Dice {mean:.5f}{' (best)' if better else ''}"
    say(f"{fold}: mean of {len(paths)} epochs{score}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if better:
            record = {"epoch": position.epoch, "dice": mean}
            keep_checkpoint(learner, fold, learner.config, record, fold.folder / "best.safetensors")
        folder.rename(done)  # at once: killed while it removes them, it would make another mean of the rest
        shutil.rmtree(done)
