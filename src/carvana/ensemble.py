"""Ensembles: the (weighted) mean probability of predictors. An ensemble is a predictor itself, so they nest."""

import torch

from carvana.tta import Predictor


class Ensemble:
    """A predictor: uint8 images (N, 3, H, W) to probabilities (N, 1, H, W) float32. Weights sum to 1 by themselves."""

    def __init__(self, predictors: list[Predictor], weights: list[float] | None = None):
        weights = weights or [1.0] * len(predictors)
        if not predictors or len(weights) != len(predictors) or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"{len(predictors)} predictors need as many weights, none negative, not all zero")
        self.predictors, self.weights = predictors, [weight / sum(weights) for weight in weights]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return sum(w * predict(images) for w, predict in zip(self.weights, self.predictors, strict=True))
