"""The batches of an epoch: one cache of photos for all processes of a machine, and each process's share of them."""

import platform

from accelerate.utils import gather_object
from torch.utils.data import DataLoader, DistributedSampler

from carvana.config import DataConfig
from carvana.data.cache import PhotoCache
from carvana.data.dataset import TrainSet, collate
from carvana.data.geometry import Fit
from carvana.data.loader import worker_options
from carvana.data.pseudo import TrainingPhotos, epoch_photos
from carvana.training.learner import Learner


def shared_cache(learner: Learner, photos: TrainingPhotos, data: DataConfig) -> PhotoCache:
    """One for all processes of a machine: the first one of them makes the file."""
    accelerator, machine = learner.accelerator, platform.node()
    cache = PhotoCache(photos, Fit.of(data), data.cache_gib if accelerator.is_local_main_process else 0)
    paths = dict(item for item in gather_object([(machine, cache.path)]) if item[1])
    return cache if cache.path else cache.join(paths.get(machine))


def train_loader(learner: Learner, photos: PhotoCache, labelled: int | None = None) -> DataLoader:
    """This epoch's batches, this process's share of them; all but the first `labelled` photos are pseudo-labelled."""
    accelerator, stage, epoch = learner.accelerator, learner.stage, learner.position.epoch
    if labelled is not None:
        photos = epoch_photos(photos, labelled, stage.data.pseudo_share, stage.train.seed, epoch)
    dataset = TrainSet(photos, stage.data.augmentation, stage.train.seed, epoch, stage.data.crop)
    sampler = DistributedSampler(dataset, accelerator.num_processes, accelerator.process_index, seed=stage.train.seed)
    sampler.set_epoch(epoch)
    options = worker_options(stage.data.num_workers) | {"pin_memory": accelerator.device.type == "cuda"}
    return DataLoader(dataset, stage.train.batch_size, sampler=sampler, collate_fn=collate, **options)
