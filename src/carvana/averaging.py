"""One model from several epochs: the mean of the last ones' or the best ones' weights (Izmailov et al., 2018)."""

import shutil
from pathlib import Path

from carvana.checkpoint import average_weights, read_facts, save_checkpoint
from carvana.config import Config
from carvana.learner import Learner
from carvana.log import say
from carvana.run import Fold
from carvana.validation import validate


def keep_checkpoint(learner: Learner, fold: Fold, stage: Config, record: dict, path: Path) -> None:
    """Writes the averaged weights (EMA) as a checkpoint of `stage`, scored as `record` says."""
    save_checkpoint(path, learner.ema.module, stage, fold.number, record["epoch"], record["dice"], fold.digest)


def keep_for_average(learner: Learner, fold: Fold, record: dict) -> None:
    """Keeps the epoch's weights as long as they may be among those that are averaged."""
    train, folder = learner.config.train, fold.folder / "epochs"
    if train.average == "none":
        return
    keep_checkpoint(learner, fold, learner.config, record, folder / f"epoch-{record['epoch']:04d}.safetensors")
    kept = sorted(folder.glob("epoch-*.safetensors"))
    if train.average == "best":
        kept.sort(key=lambda path: read_facts(path)["dice"])
    for path in kept[: -train.average_of]:
        path.unlink()


def average_epochs(learner: Learner, fold: Fold, deadline: float) -> None:
    """Validates the mean of the kept epochs, which becomes the run's checkpoint if it is better than the best epoch.

    Done once: the kept epochs are removed afterwards.
    """
    folder, accelerator, state = fold.folder / "epochs", learner.accelerator, learner.progress
    paths = sorted(folder.glob("epoch-*.safetensors"))
    if not paths:
        return
    learner.ema.module.load_state_dict(average_weights(paths))
    scores = validate(learner, fold.val, deadline)
    mean = sum(scores.values()) / len(scores)
    better = mean > state.best_dice
    say(f"fold {fold.number}: mean of {len(paths)} epochs, Dice {mean:.5f}{' (best)' if better else ''}")
    state.best_dice = max(state.best_dice, mean)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if better:
            record = {"epoch": state.epoch, "dice": mean}
            keep_checkpoint(learner, fold, learner.config, record, fold.folder / "best.safetensors")
        shutil.rmtree(folder)
