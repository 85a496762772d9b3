"""Dice of a model in training on the photos that it does not see."""

from accelerate.utils import broadcast, gather_object

from carvana.config import Config, DataConfig
from carvana.data.geometry import Fit
from carvana.data.images import Photos
from carvana.data.loader import Loading
from carvana.device import share
from carvana.evaluation.metrics import dice
from carvana.prediction.predictor import Member, Predictor
from carvana.prediction.tta import TTA
from carvana.training.engine import check_clock
from carvana.training.learner import Learner

THRESHOLD = 0.5  # of validation; the submission's is chosen out-of-fold


def validate(learner: Learner, photos: Photos, deadline: float = float("inf")) -> dict[str, float]:
    """Dice by image_id of the averaged model, on whole photos at photo size; each once, shared among the processes."""
    accelerator, stage, model = learner.accelerator, learner.stage, learner.ema.module.eval()
    broadcast(list(model.buffers()))  # BatchNorm's statistics are each process's own; the first one's are kept
    image_ids = share(validated(stage, photos), accelerator.process_index, accelerator.num_processes)
    loading = Loading(validation_batch(stage.train.batch_size, stage.data), stage.data.num_workers)
    predictor = Predictor([[Member(Fit.of(stage.data), TTA(model))]], learner.device, loading)
    scores = []
    for prediction in predictor.predict(photos, image_ids, masks=True, description="validate"):
        scores.append((prediction.image_id, dice(prediction.probs >= THRESHOLD, prediction.mask)))
        if accelerator.num_processes == 1:  # several have different numbers of photos
            check_clock(learner, deadline)
    return dict(sorted(gather_object(scores)))


def validated(stage: Config, photos: Photos) -> list[str]:
    """The ids of the photos that a stage is validated on."""
    return photos.image_ids[:: stage.train.validate_every]


def validation_batch(batch_size: int, data: DataConfig) -> int:
    """How many whole photos have about as many pixels as a batch of crops; at least one."""
    (height, width), (crop_height, crop_width) = data.size, data.train_size
    return max(1, batch_size * crop_height * crop_width // (height * width))
