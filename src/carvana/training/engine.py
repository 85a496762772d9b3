"""One epoch of training, in the open: the step, and the guards beside it."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import DataLoader

from carvana.errors import InputError, is_out_of_memory
from carvana.log import progress, say
from carvana.training.learner import Learner
from carvana.training.optim import rate_factor, set_rate

BAD_STEPS_ALLOWED = 10


class OutOfTime(Exception):
    """The time given to a run is over in the middle of an epoch."""


def train_one_epoch(learner: Learner, loader: DataLoader, deadline: float) -> dict[str, float]:
    """Steps through the loader once; returns the mean loss and how many steps were skipped, as they were not finite.

    The mean is NaN if all were. Raises InputError after ten skipped in a row, in this epoch or those before, without
    those in which fp16 finds its scale; OutOfTime once `time.monotonic()` is past `deadline`.
    """
    optim, position, clip_norm = learner.stage.optim, learner.position, learner.accelerator.clip_grad_norm_
    epochs, steps, losses = learner.config.epochs, len(loader), []
    _, done = learner.config.stage_of(position.epoch)
    begin = learner.passed(done)
    share = (learner.passed(done + 1) - begin) / steps  # of a step in the stage's schedule
    learner.model.train()
    batches = iter(loader)
    batch = send(next(batches, None), learner)
    for step in progress(range(steps), f"epoch {position.epoch + 1}/{epochs}", unit="step"):
        factor = rate_factor(begin + step * share, share, optim.warmup)
        set_rate(learner.optimizer, optim.lr * factor)
        photo_losses = forward_backward(learner, *batch)
        norm = clip_norm(learner.model.parameters(), optim.clip)
        late = is_late(learner, deadline)
        batch = send(next(batches, None), learner)  # on its way while a GPU still computes
        # The only wait for the device in a step: all that the host needs of it is read at once.
        loss, norm, late = torch.stack([photo_losses.mean(), norm, late]).tolist()
        if late:
            raise OutOfTime
        if update(learner, norm):
            losses.append(loss)
            learner.bad_in_a_row = 0
        elif not finds_scale(learner, loss):
            say(f"step {learner.position.step}: loss {loss}, gradient norm {norm}: step skipped")
            learner.bad_in_a_row += 1
            stop_if_hopeless(learner.bad_in_a_row)
        position.step += 1
    return {"loss": sum(losses) / len(losses) if losses else math.nan, "skipped_steps": steps - len(losses)}


def send(batch: list[torch.Tensor] | None, learner: Learner) -> list[torch.Tensor] | None:
    """Starts copying a batch to the device; None after the last one."""
    return batch and [tensor.to(learner.accelerator.device, non_blocking=True) for tensor in batch]


def forward_backward(learner: Learner, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Accumulates the gradient of a batch's mean loss, and returns the loss of each photo (N,).

    Out of memory, it halves the micro-batch and starts again.
    """
    while True:
        try:
            return torch.cat(list(_accumulate(learner, images, masks)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Here, outside of the except block, nothing holds the failed step's tensors any more.
        halve_micro_batch(learner)
        learner.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)


def _accumulate(learner: Learner, images: torch.Tensor, masks: torch.Tensor) -> Iterator[torch.Tensor]:
    """The losses of each micro-batch; processes exchange gradients after the last one."""
    size = learner.position.micro_batch
    parts = list(zip(images.split(size), masks.split(size), strict=True))
    for number, (part_images, part_masks) in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else learner.accelerator.no_sync(learner.model):
            losses = learner.loss(learner.model(part_images), part_masks.float() / 255)
            learner.accelerator.backward(losses.sum() / len(images))
        yield losses.detach()


def update(learner: Learner, norm: float) -> bool:
    """One step of the optimizer and of the averaged weights; False if it was skipped.

    The norm is the same in all processes, also where only one had a bad loss: they skip a step together.
    """
    fine = math.isfinite(norm)
    if fine or learner.accelerator.scaler:  # fp16's scaler skips a bad step itself, and lowers its scale
        learner.optimizer.step()
    model = learner.accelerator.unwrap_model(learner.model)
    if fine:
        learner.ema.update(model, learner.position.step)
    else:
        restore_buffers(model, learner.ema.module)
    learner.optimizer.zero_grad()
    return fine


def finds_scale(learner: Learner, loss: float) -> bool:
    """Whether a bad step is only fp16's scaler on the way down from the scale that it begins with."""
    scaler = learner.accelerator.scaler
    return scaler is not None and math.isfinite(loss) and scaler.get_scale() >= 1


@torch.no_grad()
def restore_buffers(model: nn.Module, good: nn.Module) -> None:
    """BatchNorm has averaged the bad batch in: statistics that are not finite are taken from the averaged model."""
    for buffer, good_buffer in zip(model.buffers(), good.buffers(), strict=True):
        if not torch.isfinite(buffer).all():
            buffer.copy_(good_buffer)


def halve_micro_batch(learner: Learner) -> None:
    position, advice = learner.position, "choose a smaller data.size or encoder, and --overwrite"
    if position.micro_batch == 1:
        raise InputError(f"out of memory with a single photo: {advice}")
    if learner.accelerator.num_processes > 1:  # the others wait in this step's all-reduce: it cannot be begun again
        smaller = f"--resume with --set train.micro_batch={position.micro_batch // 2}"
        raise InputError(f"out of memory: {smaller}, or {advice}")
    position.micro_batch //= 2
    say(f"out of memory: going on with {position.micro_batch} photos at once, gradients accumulated to the same batch")


def stop_if_hopeless(bad_in_a_row: int) -> None:
    if bad_in_a_row == BAD_STEPS_ALLOWED:
        advice = "--resume with --set train.precision=fp32, or begin anew with --overwrite and a lower optim.lr"
        raise InputError(f"{bad_in_a_row} steps in a row had a loss or gradient that is not finite: {advice}")


def check_clock(learner: Learner, deadline: float, seconds_ahead: float = 0.0) -> None:
    """Raises OutOfTime, in all processes at once, if what takes `seconds_ahead` would end after the deadline."""
    if is_late(learner, deadline, seconds_ahead).item() > 0:
        raise OutOfTime


def is_late(learner: Learner, deadline: float, seconds_ahead: float = 0.0) -> torch.Tensor:
    """Above 0 in all processes if one is late; their clocks differ, so the first one past the deadline decides."""
    late = time.monotonic() + seconds_ahead > deadline
    late = torch.full((), float(late), device=learner.accelerator.device)  # filled there: no copy to wait for
    return late if deadline == float("inf") else learner.accelerator.reduce(late)
