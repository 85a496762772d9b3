"""What is the same for all contestants of time_to_dice.py: the task, what comes of it, and its score."""

from dataclasses import dataclass, field

import pandas as pd
from torch import nn

from carvana.config import Config
from carvana.data.geometry import Fit, Size
from carvana.data.images import Photos, car_of
from carvana.data.loader import Loading
from carvana.device import Device
from carvana.evaluation.metrics import dice, errors_beyond
from carvana.prediction.predictor import Member, Predictor
from carvana.prediction.tta import TTA
from carvana.training.split import Fold
from carvana.training.validation import THRESHOLD


@dataclass(frozen=True)
class Race:
    """What is the same for all, and smp's two settings that are a matter of choice."""

    fold: Fold
    minutes: float  # of training: loading, forward, backward, optimizer
    config: Config  # ours; its encoder is smp's too
    device: Device
    smp_size: Size
    smp_lr: float


@dataclass
class Trained:
    """Weights after the last step, how they see photos, and what it took."""

    model: nn.Module
    fit: Fit
    minutes: float
    photos: int  # seen, repetitions counted
    notes: dict = field(default_factory=dict)


def score(model: nn.Module, fit: Fit, race: Race, views: list[str] = ("identity",)) -> pd.DataFrame:
    """As `score_photos`, by one network, of all held-out photos."""
    predictor = Predictor([[Member(fit, TTA(model.eval(), views))]], race.device, Loading())
    return score_photos(predictor, race.fold.val, race.fold.val.image_ids)


def score_photos(predictor: Predictor, photos: Photos, image_ids: list[str]) -> pd.DataFrame:
    """A row a photo, at photo size: image_id, car, dice, and the columns of BEYOND."""
    rows = []
    for prediction in predictor.predict(photos, image_ids, masks=True, description="evaluate"):
        mask, truth = prediction.probs >= THRESHOLD, prediction.mask
        facts = {"image_id": prediction.image_id, "car": car_of(prediction.image_id), "dice": dice(mask, truth)}
        rows.append(facts | errors_beyond(mask.cpu().numpy(), truth.cpu().numpy()))
    return pd.DataFrame(rows)
