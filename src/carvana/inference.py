"""Photos in, probabilities or runs at photo size out, in one pass: each photo is read once and nothing is kept."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial, reduce
from typing import NamedTuple

import numpy as np
import torch

from carvana.backends import prepare_model
from carvana.checkpoint import Checkpoint
from carvana.dataset import PhotoSet, photo_loader, to_tensor
from carvana.device import Device
from carvana.edges import encode_tensor
from carvana.ensemble import Ensemble
from carvana.errors import InputError
from carvana.geometry import Fit, Size
from carvana.images import Photos
from carvana.log import progress
from carvana.postprocess import PostProcess
from carvana.rle import rle_encode
from carvana.threads import map_in_threads
from carvana.tta import TTA, Mean, Predictor

THREADS = 2  # that bring finished batches to photo size and encode them
NOTHING = PostProcess()
WAITING = 4  # finished batches at most, so that a slow encoder slows the model down instead of filling the memory


class Member(NamedTuple):
    """Predictors that see photos through the same fit, and their share in the mean of all members."""

    fit: Fit
    predictor: Predictor
    weight: float = 1.0


class Prediction(NamedTuple):
    image_id: str
    probs: torch.Tensor  # (H, W) float32 at photo size, on the device
    mask: torch.Tensor | None  # (H, W) bool, the truth where it is known


class Encoded(NamedTuple):
    image_id: str
    size: Size  # of the photo
    rle: str


class Batch(NamedTuple):
    """A batch out of the models: for each fit the weighted sum of its members, (N, 1, h, w) on the device."""

    photos: Photos
    image_ids: list[str]
    sums: dict[Fit, torch.Tensor]
    sizes: list[Size]
    masks: list

    def probs(self, index: int) -> torch.Tensor:
        """A photo's mean over all fits, (H, W) at photo size."""
        image_id, size = self.image_ids[index], self.sizes[index]
        undone = (
            self.photos.through(image_id, fit).undo(some[index : index + 1], size) for fit, some in self.sums.items()
        )
        return reduce(torch.add, undone)[0, 0]  # `sum` would add the first one to 0


def fold_model(
    checkpoint: Checkpoint, views: Sequence[str], device: Device, mean: Mean = "probs", backend: str = "torch"
) -> TTA:
    """The checkpoint's model on the device, seen through all views. It is changed: it can only predict."""
    return TTA(prepare_model(checkpoint.model, device, backend), views, mean)


def fold_member(
    folds: list[Checkpoint], views: Sequence[str], device: Device, mean: Mean = "probs", weight: float = 1.0,
    backend: str = "torch",
) -> Member:  # fmt: skip
    """The mean of an experiment's folds, and the experiment's weight, however many folds it has.

    Raises InputError if they were trained at different sizes.
    """
    fits = {fold.config.data.geometry for fold in folds}
    if len(fits) > 1:
        raise InputError(f"{folds[0].path.parents[1]}: its folds were trained at different sizes; train them alike")
    return Member(fits.pop(), Ensemble([fold_model(fold, views, device, mean, backend) for fold in folds]), weight)


def predict_photos(
    members: list[Member],
    photos: Photos,
    image_ids: list[str],
    device: Device,
    masks: bool = False,
    batch_size: int = 4,
    num_workers: int = 2,
    description: str = "predict",
) -> Iterator[Prediction]:
    """Predicts each photo once, in order: the weighted mean of the members, each brought to photo size."""
    batches = _batches(members, photos, image_ids, device, masks, batch_size, num_workers)
    with progress([], description, total=len(image_ids)) as bar:
        for batch in batches:
            for index, (image_id, mask) in enumerate(zip(batch.image_ids, batch.masks, strict=True)):
                with torch.inference_mode():
                    probs = batch.probs(index)
                yield Prediction(image_id, probs, None if mask is None else mask.to(device.device))
                bar.update()


def predict_image(members: list[Member], image: np.ndarray, device: Device) -> torch.Tensor:
    """The weighted mean of the members for one photo of any size, uint8 (H, W, 3) RGB: (H, W) on the device.

    It is shown to them in its own proportions, with about as many pixels as they were trained on.
    """
    size, total = image.shape[:2], sum(member.weight for member in members)
    probs = torch.zeros(size, device=device.device)
    with torch.inference_mode():
        for member in members:
            fit = member.fit.like(size)
            with device.autocast():
                some = member.predictor(to_tensor(fit.image(image))[None].to(device.device))
            probs += member.weight / total * fit.undo(some, size)[0, 0]
    return probs


def predict_runs(
    members: list[Member],
    photos: Photos,
    image_ids: list[str],
    device: Device,
    threshold: float,
    postprocess: PostProcess = NOTHING,
    batch_size: int = 4,
    num_workers: int = 2,
) -> Iterator[Encoded]:
    """The thresholded and mended masks of `predict_photos` as runs: loading, models, encoding work side by side.

    Photos come in order. On a GPU a mask leaves the device as its runs only.
    """
    batches = _batches(members, photos, image_ids, device, False, batch_size, num_workers)
    encoded = map_in_threads(
        partial(encode_batch, threshold=threshold, postprocess=postprocess), batches, THREADS, WAITING
    )
    with progress([], "predict", total=len(image_ids)) as bar, closing(encoded):
        for rows in encoded:
            for row in rows:
                yield row
                bar.update()


def encode_batch(batch: Batch, threshold: float, postprocess: PostProcess) -> list[Encoded]:
    """Brings a batch to photo size, cuts it at the threshold, mends what is to be mended, and encodes it."""
    encode = encode_tensor if postprocess == NOTHING else lambda mask: rle_encode(postprocess(mask.cpu().numpy()))
    with torch.inference_mode():
        return [
            Encoded(image_id, size, encode(cut(batch.probs(index), threshold)))
            for index, (image_id, size) in enumerate(zip(batch.image_ids, batch.sizes, strict=True))
        ]


def cut(probs: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where a map reaches the threshold; NumPy is three times as fast there on one core."""
    if probs.device.type != "cpu":
        return probs >= threshold
    return torch.from_numpy(probs.numpy() >= np.float32(threshold))


def _batches(
    members: list[Member],
    photos: Photos,
    image_ids: list[str],
    device: Device,
    masks: bool,
    batch_size: int,
    num_workers: int,
) -> Iterator[Batch]:
    fits = list(dict.fromkeys(member.fit for member in members))
    total_weight = sum(member.weight for member in members)
    for some, seen, sizes, truths in load_batches(
        fits, photos, image_ids, device.device, masks, batch_size, num_workers
    ):
        sums = dict.fromkeys(fits, 0)
        with torch.inference_mode(), device.autocast():
            for member in members:
                sums[member.fit] = sums[member.fit] + member.weight / total_weight * member.predictor(seen[member.fit])
        yield Batch(photos, some, sums, sizes, truths)


def load_batches(
    fits: list[Fit], photos: Photos, image_ids: list[str], device: torch.device, masks: bool, batch_size: int,
    num_workers: int,
) -> Iterator[tuple[list[str], dict[Fit, torch.Tensor], list[Size], list]]:  # fmt: skip
    """Image ids, the batch (N, 3, h, w) uint8 on the device for each fit, photo sizes, and masks (H, W) or None."""
    loader = photo_loader(
        PhotoSet(photos, image_ids, fits, masks), batch_size, num_workers, pin_memory=device.type == "cuda"
    )
    for some, images, sizes, truths in loader:
        seen = {fit: batch.to(device, non_blocking=True) for fit, batch in zip(fits, images, strict=True)}
        yield some, seen, sizes, truths
