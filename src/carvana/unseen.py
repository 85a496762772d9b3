"""Photos and the networks that did not see their cars: what several experiments make of each, in one pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from carvana.checkpoint import Checkpoint, load_checkpoint, read_facts
from carvana.choice import Checkpoints
from carvana.device import Device
from carvana.errors import InputError
from carvana.folds import check_folds
from carvana.geometry import Fit
from carvana.images import Photos, car_of
from carvana.inference import load_batches
from carvana.log import progress
from carvana.oof import find_checkpoints
from carvana.tta import Predictor
from carvana.windows import find_cars

Source = tuple[Fit, Predictor]
"""A predictor of maps (N, channels, h, w), and how it sees photos."""


def common_checkpoints(runs: Path, experiments: Sequence[str], digest: str) -> Checkpoints:
    """The best checkpoints of the folds that all experiments have trained.

    Raises InputError if there is no such fold, or a checkpoint is of another table of folds than that of `digest`.
    """
    paths = {}
    for experiment in experiments:
        for path in find_checkpoints(runs, experiment):
            facts = read_facts(path)
            if facts["folds_digest"] != digest:
                raise InputError(f"{path}: trained with another table of folds; give that one with --folds")
            paths.setdefault(facts["fold"], {})[experiment] = path
    common = {fold: paths[fold] for fold in sorted(paths) if len(paths[fold]) == len(set(experiments))}
    if not common:
        raise InputError(f"{runs}: no fold is trained in all of {', '.join(experiments)}; train one in all of them")
    return common


@dataclass(frozen=True)
class Unseen:
    """Photos, and for each the networks that did not see its car."""

    checkpoints: Checkpoints
    photos: Photos
    folds: pd.DataFrame
    device: Device
    batch_size: int = 4
    num_workers: int = 2

    @property
    def by_fold(self) -> dict[int, list[str]]:
        """The image ids of each fold that has checkpoints."""
        fold_of = check_folds(self.folds, self.photos.cars).set_index("car")["fold"]
        image_ids = {fold: [] for fold in self.checkpoints}
        for image_id in self.photos.image_ids:
            image_ids.get(fold_of[car_of(image_id)], []).append(image_id)
        return image_ids

    @property
    def cars(self) -> list[str]:
        """The car of each photo, in the order of `predict`."""
        return [car_of(image_id) for image_ids in self.by_fold.values() for image_id in image_ids]

    def predict(
        self, sources: Callable[[dict[str, Checkpoint]], list[Source]], description: str
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Of each photo a map (channels, H, W) for each of the `sources` made of its fold's networks, and its mask."""
        by_fold = self.by_fold
        with progress([], description, total=sum(map(len, by_fold.values()))) as bar:
            for fold, image_ids in by_fold.items():
                loaded = {name: load_checkpoint(path) for name, path in self.checkpoints[fold].items()}
                for checkpoint in loaded.values():
                    checkpoint.model.to(self.device.device, memory_format=torch.channels_last)
                photos = self.photos
                for checkpoint in loaded.values():
                    photos = find_cars(photos, image_ids, [checkpoint], self.device, self.batch_size, self.num_workers)
                for prediction in self._stream(sources(loaded), photos, image_ids):
                    yield prediction
                    bar.update()

    def _stream(
        self, sources: list[Source], photos: Photos, image_ids: list[str]
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        fits, device = list(dict.fromkeys(fit for fit, _ in sources)), self.device
        batches = load_batches(fits, photos, image_ids, device.device, True, self.batch_size, self.num_workers)
        for some, seen, sizes, masks in batches:
            with torch.inference_mode(), device.autocast():
                maps = [predictor(seen[fit]) for fit, predictor in sources]
            for index, (image_id, size, mask) in enumerate(zip(some, sizes, masks, strict=True)):
                with torch.inference_mode():
                    undone = [
                        photos.through(image_id, fit).undo(probs[index : index + 1], size)[0]
                        for (fit, _), probs in zip(sources, maps, strict=True)
                    ]
                yield undone, mask.to(device.device)
