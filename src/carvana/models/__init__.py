"""Networks, their parts and their checkpoints. This file holds the networks by name, and the one way to build them."""

from carvana.config import ModelConfig
from carvana.errors import InputError
from carvana.models.linknet import LinkNet
from carvana.models.network import EncoderDecoder, Segmenter
from carvana.models.unet import UNet
from carvana.models.unetplusplus import UNetPlusPlus
from carvana.models.vanilla_unet import VanillaUNet

MODELS = {"unet": UNet, "vanilla_unet": VanillaUNet, "unetplusplus": UNetPlusPlus, "linknet": LinkNet}


def find_model(config: ModelConfig) -> type[EncoderDecoder] | type[VanillaUNet]:
    """The class of the configured architecture.

    Raises InputError if no architecture has that name, or if a setting was changed that it does not use.
    """
    if config.architecture not in MODELS:
        raise InputError(f"model.architecture={config.architecture}: choose from {', '.join(MODELS)}")
    model = MODELS[config.architecture]
    faults = []
    for key, value in config.model_dump(exclude={"architecture"}, exclude_defaults=True).items():
        if key not in model.options:
            users = ", ".join(name for name, other in MODELS.items() if key in other.options)
            wrong = f"model.{key}={value}: {config.architecture} does not use it, only {users}"
            faults.append(f"{wrong}: leave it at {ModelConfig.model_fields[key].default}")
    if faults:
        raise InputError("\n".join(faults))
    return model


def build_model(config: ModelConfig, pretrained: bool = True) -> Segmenter:
    """A model from uint8 images (N, 3, H, W) to logits (N, 1, H, W), for any height and width.

    In training with `deep_supervision`, further channels hold the logits of coarser levels.
    `pretrained=False` overrides the configuration: the encoder gets random weights, since a checkpoint follows.
    """
    return Segmenter(find_model(config)(config, pretrained))
