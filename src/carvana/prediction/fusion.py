"""BatchNorm folded into the convolution before it: in prediction both are one linear map, and one pass of memory."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order


@torch.no_grad()
def fuse_norms(model: nn.Module, images: torch.Tensor) -> int:
    """Fuses, in place, in a model in evaluation mode; returns how many BatchNorms are gone.

    A forward pass of `images` shows which BatchNorm follows which convolution, so that any model can be fused. Raises
    RuntimeError if the fused model computes something else: the output of a convolution has another use as well.
    """
    pairs, expected = find_pairs(model, images)
    for conv_name, norm_name in pairs.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        transposed = isinstance(conv, nn.ConvTranspose2d)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm, transposed))
        model.set_submodule(norm_name, activation_of(norm))
    if (model(images) - expected).abs().max() > TOLERANCE * expected.abs().max().clamp(min=1):
        raise RuntimeError("BatchNorm cannot be fused in this network")
    return len(pairs)


def find_pairs(model: nn.Module, images: torch.Tensor) -> tuple[dict[str, str], torch.Tensor]:
    """Pairs of names, a convolution and the BatchNorm that follows it, each called once; and the model's logits."""
    outputs, pairs, handles = [], [], []

    def note_output(name: str):
        return lambda module, inputs, output: outputs.append((name, output))  # kept: its id must not be used again

    def note_input(name: str):
        return lambda module, inputs: pairs.extend((conv, name) for conv, output in outputs if output is inputs[0])

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            handles.append(module.register_forward_hook(note_output(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(note_input(name)))
    logits = model(images)
    for handle in handles:
        handle.remove()
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    calls = [name for name, _ in outputs]
    return {
        conv: norm for conv, norm in pairs
        if convs.count(conv) == norms.count(norm) == calls.count(conv) == 1
    }, logits  # fmt: skip


def activation_of(norm: nn.BatchNorm2d) -> nn.Module:
    """What remains of a fused BatchNorm: timm's BatchNormAct2d also holds the activation."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
