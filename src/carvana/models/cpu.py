"""Convolutions that train faster on a CPU than PyTorch's, and the function that puts them into a built network.

Depthwise, in bfloat16: oneDNN's bfloat16 backward of strided and of 5x5 convolutions is several times slower than its
float32 one, which is therefore used. A step of `unet_lite0` took 0.18 s a photo instead of 0.29.
Dense 3x3, in float32: where a CPU has no AVX-512, oneDNN takes 1.6 to 6 times as long for the weights' gradient of
channels_last tensors as for the convolution itself. Here the gradient is nine matrix products, one for each place of
the kernel. A step of the decoder of `unet_lite0` took 0.60 s instead of 1.18. Meanwhile a layer's input and gradient
are held twice, which `training/footprint.py` does not count.
Both were measured with four photos of 512x768 on two cores of an AMD EPYC, the second one limited to AVX2.
"""

from itertools import product

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

ROWS = 8192  # pixels of one matrix product: its operands stay in the processor's cache for all nine products


def speed_up_convolutions(model: nn.Module) -> None:
    """Changes the class of slow convolutions in a model that will be trained on the CPU, in place.

    Parameters and their names stay the same, no random number is drawn, and evaluation is unchanged.
    """
    for module in model.modules():
        exact = type(module) in (nn.Conv2d, Conv2dSame)  # a subclass may compute something else
        if exact and module.bias is None and module.padding_mode == "zeros":
            module.__class__ = faster_class(module)


def faster_class(conv: nn.Conv2d) -> type[nn.Conv2d]:
    """The class that trains fastest on this CPU; its own if PyTorch is not slow."""
    if conv.groups == conv.in_channels > 1 and (max(conv.stride) > 1 or max(conv.kernel_size) > 3):
        return DepthwiseConv2dSame if type(conv) is Conv2dSame else DepthwiseConv2d
    geometry = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups
    if geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return DenseConv3x3
    return type(conv)


class DepthwiseConv2d(nn.Conv2d):
    """Without bias. In training under autocast its gradients are computed in float32."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(inputs)
        if isinstance(self, Conv2dSame):
            inputs = pad_same(inputs, self.kernel_size, self.stride, self.dilation)
        dtype = torch.get_autocast_dtype("cpu")
        conv_args = self.stride, self.padding, self.dilation, False, (0, 0), self.groups
        return _Float32Backward.apply(inputs.to(dtype), self.weight.to(dtype), conv_args)


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """With TensorFlow's padding, which depends on the input's size."""


class _Float32Backward(torch.autograd.Function):
    """A convolution without bias whose gradients are computed in float32."""

    @staticmethod
    def forward(ctx, inputs, weight, conv_args):
        ctx.save_for_backward(inputs, weight)
        ctx.conv_args = conv_args
        return torch.ops.aten.convolution(inputs, weight, None, *conv_args)

    @staticmethod
    def backward(ctx, grad):
        tensors = [tensor.float() for tensor in (grad, *ctx.saved_tensors)]  # and the inputs and the weight
        needs = [*ctx.needs_input_grad[:2], False]
        grads = torch.ops.aten.convolution_backward(*tensors, None, *ctx.conv_args, needs)
        return *(None if g is None else g.to(grad.dtype) for g in grads[:2]), None


class DenseConv3x3(nn.Conv2d):
    """Padded by 1, without bias. In training in float32 its weights' gradient is a sum of matrix products."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        float32 = self.training and not torch.is_autocast_enabled("cpu")
        channels_last = inputs.is_contiguous(memory_format=torch.channels_last)
        if float32 and channels_last and not torch.compiler.is_compiling():  # which would unroll the products
            return _GradientByProducts.apply(inputs, self.weight)
        return super().forward(inputs)


class _GradientByProducts(torch.autograd.Function):
    """A 3x3 convolution, padded by 1, without bias."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return F.conv2d(inputs, weight, padding=1)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        inputs_needed, weight_needed = ctx.needs_input_grad
        grad_inputs = torch.nn.grad.conv2d_input(inputs.shape, weight, grad, padding=1) if inputs_needed else None
        return grad_inputs, weight_gradient(inputs, grad) if weight_needed else None


def weight_gradient(inputs: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """(C_out, C_in, 3, 3) from inputs (N, C_in, H, W) and the gradient (N, C_out, H, W) of the convolution.

    With a frame of zeros around each image, all pixels lie in one row. In this row a neighbour is a fixed step away,
    the same for every pixel, so that no pixel has to be copied.
    """
    # (P, C_in) and (P, C_out), where P = N * (H + 2) * (W + 2)
    pixels, grads = (F.pad(t.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2) for t in (inputs, grad))
    width = inputs.shape[3] + 2
    first, last = width + 1, len(pixels) - width - 1  # only frame lies before and after
    sums = inputs.new_zeros(9, grads.shape[1], pixels.shape[1])
    for start in range(first, last, ROWS):
        stop = min(start + ROWS, last)
        transposed = grads[start:stop].t()
        for total, (row, column) in zip(sums, product((-1, 0, 1), repeat=2), strict=True):
            step = row * width + column
            total.addmm_(transposed, pixels[start + step : stop + step])
    return sums.permute(1, 2, 0).reshape(*sums.shape[1:], 3, 3)
