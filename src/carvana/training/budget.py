"""As many epochs as fit into a time: planned before the first, as the rate depends on them, and adapted after each."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate.utils import broadcast_object_list

from carvana.command import format_duration
from carvana.config import Config
from carvana.device import process_state
from carvana.errors import InputError
from carvana.log import say
from carvana.training.pace import Pace, measure_paces
from carvana.training.run import Budget, kept_plan
from carvana.training.split import Fold

PLANNED = 0.97  # of the time: the rest is for checkpoints, and for a machine that slows down a little
RECENT = 3  # epochs whose median says how fast the machine is now: a single one may have been disturbed


@dataclass
class Plan:
    """How many epochs each stage of an experiment has in a run, and what that was planned by."""

    budget: Budget
    experiment: Config
    planned: list[int]  # at first; of the last stage the most since
    epochs: list[int]
    paces: list[Pace]
    measuring: float  # seconds of the budget

    @property
    def config(self) -> Config:
        """The experiment with these epochs."""
        return self.experiment.with_epochs(self.epochs)

    def facts(self) -> dict:
        """What run.json keeps of it."""
        measuring = round(self.measuring, 2)
        return {"planned": self.planned, "epochs": self.epochs, "paces": self.paces, "measuring": measuring}

    def adapt(self, records: list[dict]) -> bool:
        """Takes epochs out if those to come do not fit any more, and adds some if more do; whether it did either.

        All processes do what the first one does, as their clocks differ.
        """
        spent = [self.budget.spent(record) for record in records]
        left, before = self.budget.seconds - self.measuring - sum(spent), self.epochs
        spare = (1 - PLANNED) * self.budget.seconds
        (self.epochs,) = broadcast_object_list([adapt(before, self.planned, self.paces, spent, left, spare)])
        self.planned = [*map(max, self.planned, self.epochs)]
        return self.epochs != before

    def __str__(self) -> str:
        """Such as `8 epochs of 256x384, 61.0 s each, then 9 epochs of 512x768, 98.3 s each: 28m54s`."""
        stages = [
            f"{epochs} epochs of {'x'.join(map(str, stage.data.train_size))}, {pace.later:.1f} s each"
            for stage, epochs, pace in zip(self.experiment.stages, self.epochs, self.paces, strict=True)
            if epochs
        ]
        seconds = total_seconds(self.epochs, self.paces) + self.measuring
        measuring = f", {self.measuring:.0f} s of them measuring" if self.measuring else ""
        return f"{', then '.join(stages)}: {format_duration(round(seconds))}{measuring}"


def plan_fold(config: Config, fold: Fold, budget: Budget, resume: bool = False) -> Plan:
    """The plan that a resumed run has, or a new one, measured in all processes at once; prints it.

    Raises InputError if there is no time for one epoch of each stage.
    """
    kept = kept_plan(config, fold, budget) if resume and process_state().is_main_process else None
    (kept,) = broadcast_object_list([kept])
    if kept:
        paces = [Pace(*pace) for pace in kept["paces"]]
        plan = Plan(budget, config, kept["planned"], kept["epochs"], paces, kept["measuring"])
    else:
        say(f"{fold}: measuring how many epochs fit into {budget}")
        started = time.monotonic()
        paces = measure_paces(config, fold, with_validation=not budget.training_only)
        measuring = 0.0 if budget.training_only else time.monotonic() - started
        paces, measuring = broadcast_object_list([paces, measuring])  # the first process decides
        epochs = plan_epochs(config, paces, budget, measuring)
        plan = Plan(budget, config, epochs, epochs, paces, measuring)
    say(f"{fold}: {plan}")
    return plan


def plan_epochs(config: Config, paces: list[Pace], budget: Budget, measuring: float = 0.0) -> list[int]:
    """The most epochs of each stage that fit, in the experiment's shares. Raises InputError if one of each does not."""
    shares, least = [stage.train.epochs for stage in config.stages], [1] * len(paces)
    needed = (total_seconds(least, paces) + measuring) / PLANNED
    if needed > budget.seconds:
        shortest = f"{config.name} needs {format_duration(math.ceil(needed))} on this machine, an epoch of each stage"
        raise InputError(f"a budget of {budget} is too short: {shortest}")
    return fit_epochs(shares, paces, PLANNED * budget.seconds - measuring, least)


def fit_epochs(shares: list[int], paces: list[Pace], available: float, least: list[int]) -> list[int]:
    """The most epochs of each stage that fit into `available` seconds; `least` if nothing does.

    What the shares leave of the time goes to whole epochs of the last stage, then of those before it.
    """

    def fits(epochs: list[int]) -> bool:
        return total_seconds(epochs, paces) <= available

    def plan(total: int) -> list[int]:
        return [max(low, round(total * share / sum(shares))) for low, share in zip(least, shares, strict=True)]

    epochs = least
    for total in itertools.count(1):
        if not fits(more := plan(total)):
            break
        epochs = more
    for stage in reversed(range(len(shares))):
        while shares[stage] and fits(more := [n + (i == stage) for i, n in enumerate(epochs)]):
            epochs = more
    return epochs


def total_seconds(epochs: Sequence[int], paces: Sequence[Pace]) -> float:
    return sum(pace.seconds(number) for number, pace in zip(epochs, paces, strict=True))


def adapt(
    epochs: list[int], planned: list[int], paces: list[Pace], spent: list[float], left: float, spare: float
) -> list[int]:
    """Fewer epochs, or up to what was `planned` again, if those to come miss `left` seconds by half an epoch.

    The last stage has more if that leaves `spare` seconds. `spent` are the seconds of the epochs done. One epoch of
    the last stage remains, whatever is left: it ends the schedule.
    """
    done = [min(number, max(0, len(spent) - sum(epochs[:stage]))) for stage, number in enumerate(epochs)]
    to_come, now = subtract(epochs, done), present_paces(paces, done, spent)
    if not any(to_come):
        return epochs
    half, over = now[-1].later / 2, total_seconds(to_come, now) - left
    if over > half or (over < -half and epochs != planned):
        current = next(stage for stage, number in enumerate(to_come) if number)  # no earlier one is gone back to
        to_come = [0] * current + subtract(planned, done)[current:]
        if total_seconds(to_come, now) > left + half:
            to_come = fit_epochs(to_come, now, left + half, least=[0] * (len(paces) - 1) + [1])
            to_come = [*map(min, to_come, subtract(planned, done))]
    to_come[-1] += max(0, int((left - spare - total_seconds(to_come, now)) // now[-1].later))
    return [ended + number for ended, number in zip(done, to_come, strict=True)]


def present_paces(paces: list[Pace], done: list[int], spent: list[float]) -> list[Pace]:
    """Of the epochs to come: slower than measured by as much as the last ones done."""
    expected = [
        pace.later if number else pace.first for pace, ended in zip(paces, done, strict=True) for number in range(ended)
    ]
    slowdown = statistics.median([s / e for s, e in zip(spent, expected, strict=True)][-RECENT:])
    return [
        Pace(slowdown * (pace.later if ended else pace.first), slowdown * pace.later)
        for pace, ended in zip(paces, done, strict=True)
    ]


def subtract(numbers: list[int], others: list[int]) -> list[int]:
    return [number - other for number, other in zip(numbers, others, strict=True)]
