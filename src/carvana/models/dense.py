"""3x3 convolutions that train fast on a CPU in float32.

Where a CPU has no AVX-512, oneDNN takes 1.6 to 6 times as long for the weights' gradient of channels_last tensors as
for the convolution itself, longest in the finest layers. Here it is nine matrix products, one for each place of the
kernel: for the decoder of `unet_lite0`, four photos of 512x768, 0.60 s a step instead of 1.18 (two cores of a virtual
AMD EPYC, AVX2). Meanwhile a layer's input and gradient are held twice, which `footprint` does not count.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 8192  # pixels of one product: what they hold stays in the processor's cache for all nine


class _GradientByProducts(torch.autograd.Function):
    """A 3x3 convolution, padded by 1, without bias."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return F.conv2d(inputs, weight, padding=1)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.nn.grad.conv2d_input(inputs.shape, weight, grad, padding=1)
        return grad_inputs, weight_gradient(inputs, grad) if ctx.needs_input_grad[1] else None


def weight_gradient(inputs: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """(C_out, C_in, 3, 3) from inputs (N, C_in, H, W) and the gradient (N, C_out, H, W) of the convolution.

    With a frame of zeros around each photo all pixels lie in one row, and a neighbour is a fixed step away in it,
    the same for every pixel: no pixel has to be copied for it.
    """
    pixels, grads = (_framed(tensor) for tensor in (inputs, grad))  # (P, C_in), (P, C_out)
    width = inputs.shape[3] + 2
    first, last = width + 1, len(pixels) - width - 1  # what lies before and after is frame
    sums = inputs.new_zeros(9, grads.shape[1], pixels.shape[1])
    for start in range(first, last, ROWS):
        stop = min(start + ROWS, last)
        some = grads[start:stop].t()
        for total, (row, column) in zip(sums, product((-1, 0, 1), repeat=2), strict=True):
            step = row * width + column
            total.addmm_(some, pixels[start + step : stop + step])
    return sums.permute(1, 2, 0).reshape(*sums.shape[1:], 3, 3)


def _framed(tensor: torch.Tensor) -> torch.Tensor:
    return F.pad(tensor.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)


class Conv3x3(nn.Conv2d):
    """Size unchanged; other than nn.Conv2d only in training on a CPU without AVX-512 in float32.

    It has no bias until a BatchNorm is fused into it.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and is_slow(inputs):
            return _GradientByProducts.apply(inputs, self.weight)
        return super().forward(inputs)


def is_slow(inputs: torch.Tensor) -> bool:
    """Whether oneDNN is slow at the weights' gradient of a convolution of these."""
    if inputs.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    if inputs.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    last = inputs.is_contiguous(memory_format=torch.channels_last)
    return last and not torch.compiler.is_compiling()  # which would unroll the products
