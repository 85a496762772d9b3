"""Photos in, probabilities at photo size out, one photo at a time and nothing kept."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from carvana.checkpoint import Checkpoint
from carvana.dataset import PhotoSet, photo_loader
from carvana.device import Device
from carvana.geometry import Fit
from carvana.images import Photos
from carvana.log import progress
from carvana.tta import TTA, Predictor


class Member(NamedTuple):
    """Predictors that see photos through the same fit, and their share in the mean of all members."""

    fit: Fit
    predictor: Predictor
    weight: float = 1.0


class Prediction(NamedTuple):
    image_id: str
    probs: torch.Tensor  # (H, W) float32 at photo size, on the device
    mask: torch.Tensor | None  # (H, W) bool, the truth where it is known


def fold_model(checkpoint: Checkpoint, views: list[str], device: Device) -> TTA:
    """The checkpoint's model on the device, seen through all views."""
    return TTA(checkpoint.model.to(device.device, memory_format=torch.channels_last), views)


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
    fits = list(dict.fromkeys(member.fit for member in members))
    dataset = PhotoSet(photos, image_ids, fits, masks)
    loader = photo_loader(dataset, batch_size, num_workers, pin_memory=device.device.type == "cuda")
    with progress([], description, total=len(image_ids)) as bar:
        for prediction in _stream(members, fits, loader, device):
            yield prediction
            bar.update()


def _stream(members: list[Member], fits: list[Fit], loader: DataLoader, device: Device) -> Iterator[Prediction]:
    total_weight = sum(member.weight for member in members)
    for image_ids, batches, sizes, masks in loader:
        batches = [images.to(device.device, non_blocking=True) for images in batches]
        with torch.inference_mode(), device.autocast():
            probs = [member.predictor(batches[fits.index(member.fit)]) for member in members]
        for index, (image_id, size, mask) in enumerate(zip(image_ids, sizes, masks, strict=True)):
            with torch.inference_mode():
                at_photo_size = sum(
                    member.weight / total_weight * member.fit.undo(some[index : index + 1], size)
                    for member, some in zip(members, probs, strict=True)
                )[0, 0]
            yield Prediction(image_id, at_photo_size, None if mask is None else mask.to(device.device))
