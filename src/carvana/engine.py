"""One epoch of training, in the open."""

import math
import time
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

from carvana.errors import InputError
from carvana.learner import Learner
from carvana.log import progress, say
from carvana.optim import rate_factor, set_rate

BAD_STEPS_ALLOWED = 10


class OutOfTime(Exception):
    """The time given to a run is over in the middle of an epoch."""


def train_one_epoch(learner: Learner, loader: DataLoader, deadline: float) -> dict[str, float]:
    """Steps through the loader once; returns the mean loss and the number of skipped steps.

    A step whose loss or gradient is not finite is skipped; ten in a row raise InputError. Raises OutOfTime once
    `time.monotonic()` is past `deadline`.
    """
    stage, state, accelerator = learner.stage, learner.progress, learner.accelerator
    total, skipped, bad_in_a_row, photo_losses = 0.0, 0, 0, {}
    frozen = learner.begin_epoch()
    bar = progress(loader, f"epoch {state.epoch + 1}/{learner.config.epochs}", unit="step")
    for number, (images, masks, indices) in enumerate(bar):
        check_clock(accelerator, deadline)
        set_rate(learner.optimizer, stage.optim.lr * schedule(learner, number, len(loader)), frozen)
        losses = forward_backward(learner, images.to(accelerator.device), masks.to(accelerator.device)).tolist()
        loss = sum(losses) / len(losses)
        photo_losses |= dict(zip(indices.tolist(), losses, strict=True))
        if update(learner, loss):
            bad_in_a_row = 0
            total += loss
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        else:
            skipped, bad_in_a_row = skipped + 1, bad_in_a_row + 1
            stop_if_hopeless(bad_in_a_row)
        state.step += 1
    if stage.train.replay:
        gathered = dict(gather_object(list(photo_losses.items())))  # processes may share a photo
        state.photo_losses = [gathered[index] for index in sorted(gathered)]
    return {"loss": total / max(1, len(loader) - skipped), "skipped_steps": skipped}


def schedule(learner: Learner, number: int, steps: int) -> float:
    """Rate over peak rate in step `number` of this epoch's `steps`, on the run's or the stage's warm-up and cosine."""
    stage, epoch = learner.config.stage_of(learner.progress.epoch)
    epochs = stage.train.epochs
    if stage.optim.schedule == "run":
        epoch, epochs = learner.progress.epoch, learner.config.epochs
    return rate_factor(epoch * steps + number, epochs * steps, stage.optim.warmup)


def forward_backward(learner: Learner, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Accumulates the gradient of a batch's mean loss, and returns the loss of each photo (N,).

    Out of memory, it halves the micro-batch and starts again.
    """
    while True:
        try:
            return _accumulate(learner, images, masks)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Here, outside of the except block, nothing holds the failed step's tensors any more.
        halve_micro_batch(learner)
        learner.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)


def _accumulate(learner: Learner, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    size, hard, photo_losses = learner.progress.micro_batch, learner.stage.train.hard_targets, []
    parts = list(zip(images.split(size), masks.split(size), strict=True))
    for number, (some_images, some_masks) in enumerate(parts, start=1):
        last = number == len(parts)
        with nullcontext() if last else learner.accelerator.no_sync(learner.model):
            logits = learner.model(some_images)
            targets = some_masks.float() / 255
            losses = learner.loss(logits, targets.round() if hard else targets)
            learner.accelerator.backward(losses.sum() / len(images))
        photo_losses.append(losses.detach())
    return torch.cat(photo_losses)


def halve_micro_batch(learner: Learner) -> None:
    state = learner.progress
    advice = "choose a smaller data.size or encoder"
    if state.micro_batch == 1:
        raise InputError(f"out of memory with a single photo: {advice}")
    if learner.accelerator.num_processes > 1:  # the others wait in this step's all-reduce: it cannot be begun again
        raise InputError(f"out of memory: set train.micro_batch={state.micro_batch // 2}, or {advice}")
    state.micro_batch //= 2
    say(f"out of memory: going on with {state.micro_batch} photos at once, gradients accumulated to the same batch")


def update(learner: Learner, loss: float) -> bool:
    """One step of the optimizer and of the averaged weights; False if it had to be skipped."""
    accelerator, model = learner.accelerator, learner.accelerator.unwrap_model(learner.model)
    norm = accelerator.clip_grad_norm_(learner.model.parameters(), learner.stage.optim.clip)
    scaled = accelerator.scaler is not None
    fine = bool(torch.isfinite(norm))  # every process sees the same norm, also where only one had a bad loss
    if fine or scaled:  # fp16's scaler skips a bad step itself, and is to be told of it to lower its scale
        learner.optimizer.step()
    if fine:
        learner.ema.update(model, learner.progress.step)
    else:
        if not scaled or not math.isfinite(loss):  # a scaler's search for its scale is nothing to tell
            say(f"step {learner.progress.step}: loss {loss}, gradient norm {norm.item()}: step skipped")
        restore_buffers(model, learner.ema.module)
    learner.optimizer.zero_grad()
    return fine


@torch.no_grad()
def restore_buffers(model: nn.Module, good: nn.Module) -> None:
    """BatchNorm has already averaged the bad batch in: takes poisoned statistics from the averaged model."""
    for buffer, good_buffer in zip(model.buffers(), good.buffers(), strict=True):
        if not torch.isfinite(buffer).all():
            buffer.copy_(good_buffer)


def stop_if_hopeless(bad_in_a_row: int) -> None:
    if bad_in_a_row == BAD_STEPS_ALLOWED:
        raise InputError(
            f"{bad_in_a_row} steps in a row had a loss or gradient that is not finite: "
            "lower optim.lr, or set train.precision=fp32; the last whole epoch can be resumed"
        )


def check_clock(accelerator: Accelerator, deadline: float, seconds_ahead: float = 0.0) -> None:
    """Raises OutOfTime, in all processes at once, if what takes `seconds_ahead` would end after the deadline.

    The processes' clocks differ, so the first one past it decides.
    """
    if deadline == float("inf"):
        return
    late = torch.tensor(float(time.monotonic() + seconds_ahead > deadline), device=accelerator.device)
    if accelerator.reduce(late).item() > 0:
        raise OutOfTime
