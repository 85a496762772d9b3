"""Out-of-fold prediction: every photo by the fold that did not see its car, Dice per image at photo size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd

from carvana.data.folds import rows_of, source_of
from carvana.data.images import Photos, angle_of, car_of
from carvana.data.loader import Loading
from carvana.data.rle import rle_encode
from carvana.data.soft import encode_soft
from carvana.device import Device, share, side_by_side
from carvana.errors import InputError, few
from carvana.evaluation.metrics import THRESHOLDS, dice_curve, errors_beyond
from carvana.models.checkpoint import Checkpoint, load_checkpoint
from carvana.prediction.ensemble import Checkpoints
from carvana.prediction.predictor import Mix, Prediction, Predictor, fold_members

HALF = 0.5  # masks are kept at this threshold, to be looked at: the best one is known only after all photos


@dataclass(frozen=True)
class Oof:
    """What out-of-fold prediction leaves of each photo; the maps themselves are not kept."""

    table: pd.DataFrame  # a row a photo: image_id, car, angle, fold, and of its mask at HALF what BEYOND names
    curves: np.ndarray  # (photos, 99) float64: its Dice at each of THRESHOLDS
    masks: list[str]  # its mask at HALF, as RLE
    soft: Sequence[bytes] = ()  # its soft mask, where that was asked for


@dataclass(frozen=True)
class Unseen:
    """Photos, and for each the networks that did not see its car."""

    checkpoints: Checkpoints
    photos: Photos
    folds: pd.DataFrame
    device: Device
    loading: Loading
    part: tuple[int, int] = (0, 1)  # i (from 0) of n: this share of each fold's batches

    @cached_property
    def by_fold(self) -> dict[int, list[str]]:
        """The image ids of each fold that has checkpoints. Raises InputError for a fold without photos."""
        fold_of = rows_of(self.folds, self.photos.cars).set_index("car")["fold"]
        image_ids = {fold: [] for fold in self.checkpoints}
        for image_id in self.photos.image_ids:
            image_ids.get(fold_of[car_of(image_id)], []).append(image_id)
        if empty := few([fold for fold, of_fold in image_ids.items() if not of_fold]):
            raise InputError(f"{source_of(self.folds)}: fold {empty} is trained, but has none of the cars present")
        return {fold: self._share(image_ids[fold]) for fold in image_ids}

    def _share(self, image_ids: list[str]) -> list[str]:
        size = self.loading.batch_size
        batches = [image_ids[first : first + size] for first in range(0, len(image_ids), size)]
        return [*chain.from_iterable(share(batches, *self.part))]

    @property
    def cars(self) -> list[str]:
        """The car of each photo, in the order of `predict`."""
        return [car_of(image_id) for image_ids in self.by_fold.values() for image_id in image_ids]

    def predict(self, mixes: Callable[[dict[str, Checkpoint]], Sequence[Mix]], name: str) -> Iterator[Prediction]:
        """Each photo and its true mask, by the `mixes` that are made of its fold's networks, by experiment."""
        for fold, image_ids in self.by_fold.items():
            networks = {experiment: load_checkpoint(path) for experiment, path in self.checkpoints[fold].items()}
            predictor = Predictor(mixes(networks), self.device, self.loading)
            yield from predictor.predict(self.photos, image_ids, masks=True, description=f"{name} fold {fold}")


def predict_oof(
    unseen: Unseen, views: Sequence[str], backend: str = "torch", devices: Sequence[Device] = (), soft: bool = False
) -> Oof:
    """Scores each photo of an experiment; photos of folds without a checkpoint are left out.

    With `devices` they are shared among those, a process each. With `soft` the probabilities are kept, compressed.
    """
    shares = [replace(unseen, device=device, part=(i, len(devices))) for i, device in enumerate(devices)] or [unseen]
    oofs = side_by_side(_predict_share, [(part, views, backend, soft) for part in shares if part.cars])
    order = np.argsort(np.concatenate([oof.table["fold"] for oof in oofs]), kind="stable")
    masks = [mask for oof in oofs for mask in oof.masks]
    pngs = [png for oof in oofs for png in oof.soft]
    table = pd.concat([oof.table for oof in oofs], ignore_index=True).iloc[order].reset_index(drop=True)
    curves = np.concatenate([oof.curves for oof in oofs])[order]
    return Oof(table, curves, [masks[i] for i in order], [pngs[i] for i in order] if soft else ())


def _predict_share(unseen: Unseen, views: Sequence[str], backend: str, soft: bool) -> Oof:
    rows, curves, masks, pngs = [], [], [], []
    fold_of = {image_id: fold for fold, image_ids in unseen.by_fold.items() for image_id in image_ids}
    members = lambda networks: [fold_members([*networks.values()], views, unseen.device, backend=backend)]
    for prediction in unseen.predict(members, "evaluate"):
        image_id = prediction.image_id
        mask = (prediction.probs >= HALF).cpu().numpy()
        row = {"image_id": image_id, "car": car_of(image_id), "angle": angle_of(image_id), "fold": fold_of[image_id]}
        rows.append(row | errors_beyond(mask, prediction.mask.cpu().numpy()))
        curves.append(dice_curve(prediction.probs, prediction.mask).cpu().numpy())
        masks.append(rle_encode(mask))
        if soft:
            pngs.append(encode_soft(prediction.probs))
    table = pd.DataFrame(rows).round(6)  # as oof.csv holds it
    return Oof(table, np.reshape(curves, (-1, len(THRESHOLDS))), masks, pngs)
