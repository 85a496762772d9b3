"""What a run continues from when it was killed: accelerate's state after each epoch, and how far it has come."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from safetensors import SafetensorError

from carvana.errors import InputError, scarcity


@dataclass
class Position:
    """How far a run has come, as accelerate keeps it."""

    epoch: int = 0
    step: int = 0
    best_dice: float = -1.0  # of the stage
    micro_batch: int = 0  # of the epoch
    since: int = 0  # epochs of the stage done when their planned number was last changed
    passed: float = 0.0  # of the stage's schedule at that time, 0 to 1
    precisions: list[str] = field(default_factory=list)  # one after the other
    seen_cars: list[str] = field(default_factory=list)  # all that the weights learn from

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def save_state(accelerator: Accelerator, folder: Path, epoch: int) -> None:
    """Writes `<folder>/epoch-<n>` under another name, renames it, and only then removes the one before."""
    final, temporary = folder / f"epoch-{epoch:04d}", folder / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
    except (SafetensorError, RuntimeError) as error:  # what safetensors and PyTorch make of a full disk
        raise OSError(f"{temporary}: cannot be written: {error}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in filter(Path.is_file, temporary.rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # on the disk before the state before it is removed: the power may fail
        temporary.rename(final)
        for old in saved_states(folder)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def saved_states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(folder.glob("epoch-*"))


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Loads the newest whole state, which must exist. Raises InputError if it is damaged."""
    state = saved_states(folder)[-1]
    scaler, is_scaled = accelerator.scaler, (state / "scaler.pt").exists()
    accelerator.scaler = scaler if is_scaled else None  # fp16 begins with a new scale where there was none
    try:
        accelerator.load_state(str(state), map_location="cpu")  # where AdamW keeps its number of steps
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and scarcity(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{state}: damaged ({reason}); start anew with --overwrite") from error
    accelerator.scaler = scaler
