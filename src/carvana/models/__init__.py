"""Networks by name, and the one way to build them from a configuration."""

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models.encoder_decoder import EncoderDecoder
from carvana.models.linknet import LinkNet
from carvana.models.segmenter import Segmenter
from carvana.models.unet import UNet
from carvana.models.unetplusplus import UNetPlusPlus
from carvana.models.vanilla_unet import VanillaUNet

MODELS = {"unet": UNet, "vanilla_unet": VanillaUNet, "unetplusplus": UNetPlusPlus, "linknet": LinkNet}


def find_model(config: ModelConfig) -> type[EncoderDecoder] | type[VanillaUNet]:
    """The class of the configured architecture.

    Raises InputError if there is none of that name, or if it does not use a setting that was changed.
    """
    if config.architecture not in MODELS:
        raise InputError(f"model.architecture={config.architecture}: choose from {', '.join(MODELS)}")
    model = MODELS[config.architecture]
    if faults := [_refusal(config, key) for key in _changed(config) if key not in model.options]:
        raise InputError("\n".join(faults))
    return model


def build_model(config: ModelConfig, pretrained: bool = True) -> Segmenter:
    """A model from uint8 images (N, 3, H, W) to logits (N, 1, H, W), for any height and width.

    In training with `deep_supervision`, further channels hold the logits of coarser levels.
    `pretrained=False` leaves the encoder's weights random whatever the configuration says: for checkpoints.
    """
    return Segmenter(find_model(config).from_config(config, pretrained))


def _changed(config: ModelConfig) -> list[str]:
    """The settings, other than the architecture, that are not the default."""
    fields = ModelConfig.model_fields.items()
    return [key for key, field in fields if key != "architecture" and getattr(config, key) != field.default]


def _refusal(config: ModelConfig, key: str) -> str:
    """One line: the setting, the architecture that does not use it, those that do, and what to leave it at."""
    users = ", ".join(name for name, model in MODELS.items() if key in model.options)
    default = ModelConfig.model_fields[key].default
    unused = f"model.{key}={getattr(config, key)}: {config.architecture} does not use it"
    return f"{unused}, only {users}: leave it at {default}"


__all__ = ["MODELS", "LinkNet", "Segmenter", "UNet", "UNetPlusPlus", "VanillaUNet", "build_model", "find_model"]
