"""Depthwise convolutions that train fast on a CPU in bfloat16.

oneDNN's bfloat16 backward of strided and of 5x5 depthwise convolutions is several times slower than its float32
one. Their backward is therefore run in float32: a step of the U-Net on EfficientNet-Lite0 at 512x768, four photos,
two cores of an AMD EPYC, took 0.18 s a photo instead of 0.29.
"""

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn


class _Float32Backward(torch.autograd.Function):
    """A convolution without bias whose gradients are computed in float32."""

    @staticmethod
    def forward(ctx, inputs, weight, conv_args):
        ctx.save_for_backward(inputs, weight)
        ctx.conv_args = conv_args
        return torch.ops.aten.convolution(inputs, weight, None, *conv_args)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        grads = torch.ops.aten.convolution_backward(
            grad.float(), inputs.float(), weight.float(), None, *ctx.conv_args, needs
        )
        return *(None if g is None else g.to(grad.dtype) for g in grads[:2]), None


class DepthwiseConv2d(nn.Conv2d):
    """`conv` with its own weight, under the same name in the state; other only in training on a CPU in bfloat16.

    It has no bias until a BatchNorm is fused into it.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, bias=False,
        )  # fmt: skip
        self.weight = conv.weight
        self.pads_same = isinstance(conv, Conv2dSame)  # TensorFlow's padding: it depends on the input's size

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        padding = self.padding
        if self.pads_same:
            inputs, padding = pad_same(inputs, self.kernel_size, self.stride, self.dilation), (0, 0)
        if not (self.training and inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return F.conv2d(inputs, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        dtype = torch.get_autocast_dtype("cpu")
        conv_args = self.stride, padding, self.dilation, False, (0, 0), self.groups
        return _Float32Backward.apply(inputs.to(dtype), self.weight.to(dtype), conv_args)


def is_slow(conv: nn.Module) -> bool:
    """Whether oneDNN is slow at the bfloat16 backward of this module."""
    depthwise = isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1 and conv.bias is None
    return depthwise and isinstance(conv.padding, tuple) and (max(conv.stride) > 1 or max(conv.kernel_size) > 3)


def replace_slow_depthwise(module: nn.Module) -> None:
    """Puts a DepthwiseConv2d in the place of each slow convolution, in place."""
    for name, child in module.named_children():
        if is_slow(child):
            setattr(module, name, DepthwiseConv2d(child))
        else:
            replace_slow_depthwise(child)
