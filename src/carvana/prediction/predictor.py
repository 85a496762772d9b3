"""From photos to probabilities or runs at photo size, in one pass: each photo is read once, and no map is kept."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache

from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos
from carvana.data.loader import Loading, load_photos, map_in_threads, to_tensor
from carvana.device import Device
from carvana.errors import InputError, is_out_of_memory
from carvana.log import progress, say
from carvana.models.checkpoint import Checkpoint
from carvana.prediction.backends import prepare_model
from carvana.prediction.encoding import Batch, Describe, Encoded, encode_batch, undo_fits
from carvana.prediction.ensemble import weighted_mean
from carvana.prediction.postprocess import AS_IT_IS, PostProcess
from carvana.prediction.tiles import blend_tiles
from carvana.prediction.tta import TTA, Network

THREADS = 2  # that bring finished batches to photo size and encode them
TRAINED_ON = 1280 * 1918  # pixels of the photos that networks were trained on
TILE = 960  # pixels of the coarsest network: a side of a tile
WAITING = 4  # finished batches at most, so that a slow encoder slows the model down instead of filling the memory


class Member(NamedTuple):
    """A network, how it sees photos, and its weight in the mean."""

    fit: Fit
    network: Network
    weight: float = 1.0
    name: str = "the network"  # its checkpoint's path, for errors


Mix = Sequence[Member]
"""Members of which the weighted mean is wanted; their weights need not sum to 1."""


class Prediction(NamedTuple):
    image_id: str
    maps: list[torch.Tensor]  # for each mix (C, H, W) float32 at photo size, on the device
    mask: torch.Tensor | None  # (H, W) bool, the truth where it was asked for

    @property
    def probs(self) -> torch.Tensor:
        """(H, W), of the only mix."""
        return self.maps[0][0]


class Predictor:
    """Networks on a device, mixed as `mixes` say, and how photos are loaded for them.

    What comes of photos comes in the order of their ids.
    """

    def __init__(self, mixes: Sequence[Mix], device: Device, loading: Loading):
        self.mixes, self.device, self.loading = mixes, device, loading
        self.fits = list(dict.fromkeys(member.fit for mix in mixes for member in mix))
        self.occurrences = Counter(member[:2] for mix in mixes for member in mix)
        self.one_by_one = False  # the photos of a batch, since memory did not suffice for all at once

    def predict(
        self, photos: Photos, image_ids: list[str], masks: bool = False, description: str = "predict"
    ) -> Iterator[Prediction]:
        """The maps of each photo, and the true mask if asked for."""
        with progress([], description, total=len(image_ids)) as bar:
            for batch in self.batches(photos, image_ids, masks):
                self.check(batch)
                for index, (image_id, mask) in enumerate(zip(batch.image_ids, batch.masks, strict=True)):
                    with torch.inference_mode():
                        maps = batch.maps(index)
                    yield Prediction(image_id, maps, None if mask is None else mask.to(self.device.device))
                    bar.update()

    def encode(
        self, photos: Photos, image_ids: list[str], threshold: float, postprocess: PostProcess = AS_IT_IS,
        describe: Describe | None = None,
    ) -> Iterator[Encoded]:  # fmt: skip
        """The first mix's thresholded and mended masks as runs: loading, networks and encoding work side by side.

        On a GPU a mask leaves the device as its runs only. `describe` works on the device, in several threads.
        """

        def work(batch: Batch) -> list[Encoded]:
            self.check(batch)
            return encode_batch(batch, threshold, postprocess, describe)

        encoded = map_in_threads(work, self.batches(photos, image_ids), THREADS, WAITING)
        with progress([], "predict", total=len(image_ids)) as bar, closing(encoded):
            for rows in encoded:
                for row in rows:
                    yield row
                    bar.update()

    def predict_image(self, image: np.ndarray, tiles: bool = False, name: str = "the photo") -> torch.Tensor:
        """The probabilities (H, W) of one photo of any size, uint8 (H, W, 3) RGB; `name` is for errors.

        It is shown to the networks in its own proportions, with about as many pixels as they were trained on. With
        `tiles` its contour is then sought in parts of it, at the scale of training if the photo is larger.
        """
        size, whole = image.shape[:2], self._region(image, 1.0, name)
        if not tiles:
            return whole
        area = min(math.prod(size), TRAINED_ON)
        predict = lambda tile: self._region(tile, math.prod(tile.shape[:2]) / area, name).cpu().numpy()
        side, reach = round(TILE * self.pixel(size, tiles)), math.ceil(4 * self.pixel(size))
        return torch.from_numpy(blend_tiles(predict, image, whole.cpu().numpy(), side, reach))

    def pixel(self, size: Size, tiles: bool = False) -> float:
        """How many pixels of a photo of that size, along one side, a pixel of the coarsest network covers."""
        area = min(math.prod(size), TRAINED_ON) if tiles else math.prod(size)
        return math.sqrt(area / min(math.prod(fit.size) for fit in self.fits))

    def _region(self, image: np.ndarray, share: float, name: str) -> torch.Tensor:
        """The probabilities of a photo or of a tile of it, shown with that share of the networks' pixels."""
        size, torch.backends.cudnn.benchmark = image.shape[:2], False  # each photo may have its own
        fits = {fit: fit.like(size, share) for fit in self.fits}
        images = {fit: to_tensor(shown.image(image))[None].to(self.device.device) for fit, shown in fits.items()}
        with torch.inference_mode():
            (sums,) = self._mix(images)
            self.check(Batch([name], [sums], [size], [None], images))
            return undo_fits([(fits[fit], maps) for fit, maps in sums.items()], 0, size)[0]

    def batches(self, photos: Photos, image_ids: list[str], masks: bool = False) -> Iterator[Batch]:
        """The photos in batches out of the networks, with the true masks if asked for."""
        torch.backends.cudnn.benchmark = True  # they have one size
        for batch in load_photos(photos, image_ids, self.fits, self.device.device, self.loading, masks):
            with torch.inference_mode():
                sums = self._mix_batch(batch.images)
            yield Batch(batch.image_ids, sums, batch.sizes, batch.masks, batch.images)

    def check(self, batch: Batch) -> None:
        """Raises InputError, with the names of photo and checkpoint, if a probability is not finite."""
        if all(maps.isfinite().all() for sums in batch.sums for maps in sums.values()):
            return
        remedy = "compute in fp32 (--precision fp32; in training --set train.precision=fp32), or train this fold again"
        for member in (member for mix in self.mixes for member in mix):
            with torch.inference_mode(), self.device.autocast():
                finite = member.network(batch.images[member.fit]).isfinite().flatten(1).all(1)
            for image_id in compress(batch.image_ids, ~finite):
                raise InputError(f"{image_id}: {member.name} gives numbers that are not finite: {remedy}")
        raise InputError(f"{', '.join(batch.image_ids)}: numbers that are not finite, though not twice: {remedy}")

    def _mix_batch(self, images: dict[Fit, torch.Tensor]) -> list[dict[Fit, torch.Tensor]]:
        """As `_mix`; once memory does not suffice for a batch, photo by photo."""
        count = len(next(iter(images.values())))
        if not self.one_by_one:
            try:
                return self._mix(images)
            except RuntimeError as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
            self.one_by_one = True  # outside of the except block, nothing holds the failed batch's maps any more
            clear_device_cache(garbage_collection=True)
            say(f"out of memory with {count} photos at once: going on one by one")
        singles = [self._mix({fit: batch[n : n + 1] for fit, batch in images.items()}) for n in range(count)]
        return [
            {fit: torch.cat([part[fit] for part in parts]) for fit in parts[0]} for parts in zip(*singles, strict=True)
        ]

    def _mix(self, images: dict[Fit, torch.Tensor]) -> list[dict[Fit, torch.Tensor]]:
        """For each mix and each of its fits the sum of its members' maps, weighted so that a mix is their mean."""
        sums, kept = [], {}

        def map_of(member: Member) -> torch.Tensor:
            """A network of several mixes computes once."""
            key = fit, network = member[:2]
            probs = kept[key] if key in kept else network(images[fit])
            if self.occurrences[key] > 1:
                kept[key] = probs
            return probs

        for mix in self.mixes:
            total, by_fit = sum(member.weight for member in mix), {}
            for member in mix:
                by_fit.setdefault(member.fit, []).append(member)
            with self.device.autocast():
                sums.append({
                    fit: weighted_mean(map(map_of, members), [m.weight / total for m in members])
                    for fit, members in by_fit.items()
                })  # fmt: skip
        return sums


def fold_members(
    networks: Sequence[Checkpoint], views: Sequence[str], device: Device, weight: float = 1.0, backend: str = "torch"
) -> list[Member]:
    """An experiment's folds, which share its weight. Their models are changed: they can only predict.

    Raises InputError if they were trained at different sizes.
    """
    fits = {Fit.of(network.config.data) for network in networks}
    if len(fits) > 1:
        raise InputError(f"{networks[0].path.parents[1]}: its folds were trained at different sizes; train them alike")
    (fit,) = fits
    shown = [TTA(prepare_model(network.model, device, backend, fit.size), views) for network in networks]
    share = weight / len(networks)
    return [Member(fit, tta, share, str(network.path)) for network, tta in zip(networks, shown, strict=True)]
