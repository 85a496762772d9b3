"""What a killed run continues from: model, optimizer, averaged weights and progress after a whole epoch."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator

from carvana.errors import InputError


@dataclass
class Progress:
    """How far a run has come; kept by accelerate among its other states."""

    epoch: int = 0
    step: int = 0
    best_dice: float = -1.0  # of the stage
    micro_batch: int = 0
    photo_losses: list[float] = field(default_factory=list)  # of the last epoch, by the photo's index

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def save_state(accelerator: Accelerator, folder: Path, epoch: int) -> None:
    """Writes `<folder>/epoch-<n>` under another name, renames it, and only then removes the one before."""
    final, temporary = folder / f"epoch-{epoch:04d}", folder / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        temporary.rename(final)
        for old in saved_states(folder)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def saved_states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(folder.glob("epoch-*"))


def load_state(accelerator: Accelerator, folder: Path) -> bool:
    """Loads the newest whole state into what was prepared and registered; False if there is none.

    Raises InputError if it is damaged.
    """
    states = saved_states(folder)
    if states:
        try:
            accelerator.load_state(str(states[-1]))
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
            raise InputError(f"{states[-1]}: damaged ({type(error).__name__}); start anew with --overwrite") from error
    return bool(states)
