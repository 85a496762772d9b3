"""Networks by name, and the one way to build them from a configuration."""

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models.segmenter import Segmenter
from carvana.models.unet import UNet
from carvana.models.vanilla_unet import VanillaUNet

MODELS = {"unet": UNet, "vanilla_unet": VanillaUNet}


def find_model(config: ModelConfig) -> type[UNet] | type[VanillaUNet]:
    """The class of the configured architecture. Raises InputError if there is none of that name."""
    if config.architecture not in MODELS:
        raise InputError(f"model.architecture={config.architecture}: choose from {', '.join(MODELS)}")
    return MODELS[config.architecture]


def build_model(config: ModelConfig, pretrained: bool = True) -> Segmenter:
    """A model from uint8 images (N, 3, H, W) to logits (N, 1, H, W), for any height and width.

    `pretrained=False` leaves the encoder's weights random whatever the configuration says: for checkpoints.
    """
    return Segmenter(find_model(config).from_config(config, pretrained))


__all__ = ["MODELS", "Segmenter", "UNet", "VanillaUNet", "build_model", "find_model"]
