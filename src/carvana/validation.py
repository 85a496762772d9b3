"""Dice of a model in training on the photos that it does not see."""

from accelerate.utils import broadcast, gather_object

from carvana.config import DataConfig
from carvana.device import Device
from carvana.engine import check_clock
from carvana.images import Photos
from carvana.inference import Member, predict_photos
from carvana.learner import Learner
from carvana.metrics import dice
from carvana.panel import Panel
from carvana.tta import TTA

THRESHOLD = 0.5  # of validation; the submission's is chosen out-of-fold


def validate(
    learner: Learner, photos: Photos, deadline: float = float("inf"), panel: Panel | None = None
) -> dict[str, float]:
    """Dice by image_id of the averaged model, on whole photos at photo size; each once, shared among the processes.

    A panel is shown each prediction as it comes.
    """
    accelerator, stage, model = learner.accelerator, learner.stage, learner.ema.module.eval()
    broadcast(list(model.buffers()))  # BatchNorm's statistics are each process's own; the first one's are kept
    image_ids = photos.image_ids[accelerator.process_index :: accelerator.num_processes]
    predictions = predict_photos(
        [Member(stage.data.geometry, TTA(model))], photos, image_ids,
        Device(accelerator.device, accelerator.mixed_precision), masks=True, description="validate",
        batch_size=whole_photos(stage.train.batch_size, stage.data), num_workers=stage.data.num_workers,
    )  # fmt: skip
    scores = []
    for image_id, probs, mask in predictions:
        prediction = probs >= THRESHOLD
        scores.append((image_id, dice(prediction, mask)))
        if panel:
            panel.add(image_id, prediction, mask, scores[-1][1])
        if accelerator.num_processes == 1:  # several have different numbers of photos
            check_clock(accelerator, deadline)
    if panel:
        panel.finish()
    return dict(sorted(gather_object(scores)))


def whole_photos(batch_size: int, data: DataConfig) -> int:
    """How many whole photos have about as many pixels as a batch of crops; at least one."""
    (height, width), (crop_height, crop_width) = data.size, data.crop or data.size
    return max(1, batch_size * crop_height * crop_width // (height * width))
