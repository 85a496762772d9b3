"""Convolutions that train faster on a CPU than PyTorch's, and the function that puts them into a built network.

Depthwise, in bfloat16: oneDNN's bfloat16 backward of strided and of 5x5 convolutions is several times slower than its
float32 one, which is therefore used. A step of `unet_lite0` took 0.18 s a photo instead of 0.29.
Dense 3x3, in float32: where a CPU has no AVX-512, oneDNN takes 1.6 to 6 times as long for the weights' gradient of
channels_last tensors as for the convolution itself. Here the gradient is nine matrix products, one for each place of
the kernel. A step of the decoder of `unet_lite0` took 0.60 s instead of 1.18. Meanwhile a layer's input and gradient
are held twice, which `training/footprint.py` does not count.
Behind nearest upsampling, four products take the place of nine. A step of `unet_lite0` took 0.150 s a photo instead of
0.169 in bfloat16, and 0.71 instead of 0.81 in float32 without AVX-512.
All were measured with four photos of 512x768 on two cores of an AMD EPYC, those in float32 without AVX-512.
"""

from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

from carvana.models.blocks import DecoderBlock

ROWS = 8192  # pixels of one matrix product: its operands stay in the processor's cache for all nine products


def speed_up_convolutions(model: nn.Module) -> None:
    """Changes the class of slow convolutions in a model that will be trained on the CPU, in place.

    Parameters and their names stay the same, no random number is drawn, and evaluation is unchanged.
    """
    for module in model.modules():
        module.__class__ = faster_class(module)


def faster_class(module: nn.Module) -> type[nn.Module]:
    """The class that trains fastest on this CPU; its own if PyTorch is not slow."""
    if type(module) is DecoderBlock and getattr(module.upsample, "mode", None) == "nearest":
        return FourTapBlock
    exact = type(module) in (nn.Conv2d, Conv2dSame)  # a subclass may compute something else
    if not exact or module.bias is not None or module.padding_mode != "zeros":
        return type(module)
    if module.groups == module.in_channels > 1 and (max(module.stride) > 1 or max(module.kernel_size) > 3):
        return DepthwiseConv2dSame if type(module) is Conv2dSame else DepthwiseConv2d
    geometry = module.kernel_size, module.padding, module.stride, module.dilation, module.groups
    slow = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return DenseConv3x3 if slow and geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) else type(module)


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


def by_products(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether a dense convolution's gradient is to be matrix products: in training, in float32, channels_last."""
    float32 = module.training and not torch.is_autocast_enabled("cpu")
    channels_last = inputs.is_contiguous(memory_format=torch.channels_last)
    return float32 and channels_last and not torch.compiler.is_compiling()  # which would unroll the products


class DenseConv3x3(nn.Conv2d):
    """Padded by 1, without bias. In training in float32 its weights' gradient is a sum of matrix products."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.convolve(inputs, self.weight) if self.training else super().forward(inputs)  # a fused norm's bias

    def convolve(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """With any square kernel, padded by 1."""
        if by_products(self, inputs):
            return _GradientByProducts.apply(inputs, weight)
        return F.conv2d(inputs, weight, padding=1)


class _GradientByProducts(torch.autograd.Function):
    """A convolution with a square kernel, padded by 1, without bias."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return F.conv2d(inputs, weight, padding=1)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        inputs_needed, weight_needed = ctx.needs_input_grad
        grad_inputs = torch.nn.grad.conv2d_input(inputs.shape, weight, grad, padding=1) if inputs_needed else None
        return grad_inputs, weight_gradient(inputs, grad, weight.shape[-1]) if weight_needed else None


class FourTapBlock(DecoderBlock):
    """Behind nearest upsampling. In training its first convolution reads coarse features where they are."""

    def join(self, coarse: torch.Tensor, *skips: torch.Tensor) -> torch.Tensor:
        channels_last = coarse.is_contiguous(memory_format=torch.channels_last)
        if not (self.training and channels_last) or torch.compiler.is_compiling():
            return super().join(coarse, *skips)
        conv, norm, act = self.conv1
        convolve = getattr(conv, "convolve", partial(F.conv2d, padding=1))
        coarse_weight, skip_weight = conv.weight.tensor_split([coarse.shape[1]], dim=1)
        features = _Interleave.apply(convolve(coarse, four_taps(coarse_weight)))
        if skips:
            features = features + convolve(torch.cat(skips, dim=1), skip_weight)
        return act(norm(features))


def four_taps(weight: torch.Tensor) -> torch.Tensor:
    """Kernels (4 C_out, C_in, 2, 2) for an image that is doubled afterwards, from (C_out, C_in, 3, 3) for the doubled.

    The nine places of the kernel fall on 2x2 pixels of the small image. Each of the four pixels that one becomes has a
    2x2 kernel of its own, sums of the nine weights: four products in the place of nine.
    """
    # Of an even and an odd row, and alike of columns: which rows of the kernel fall on each of two coarse rows.
    rows = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    kernels = torch.einsum("ark,bsl,oikl->aboirs", rows, rows, weight).flatten(0, 2)
    return kernels.contiguous(memory_format=torch.channels_last)


class _Interleave(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, parts):
        return interleave(parts)

    @staticmethod
    def backward(_ctx, grad):
        return separate(grad)


def interleave(parts: torch.Tensor) -> torch.Tensor:
    """(N, 4C, h + 1, w + 1), of even and odd rows and columns, to (N, C, 2h, 2w); even ones lack the last place."""
    number, channels, height, width = parts.shape
    parts = parts.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
    pixels = parts.new_empty(number, height - 1, 2, width - 1, 2, channels // 4)
    for row, column in product(range(2), repeat=2):
        pixels[:, :, row, :, column] = parts[:, row : row + height - 1, column : column + width - 1, row, column]
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def separate(pixels: torch.Tensor) -> torch.Tensor:
    """The inverse of `interleave`; zero in the places that it leaves out."""
    number, channels, height, width = pixels.shape
    pixels = pixels.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    parts = pixels.new_empty(number, height // 2 + 1, width // 2 + 1, 2, 2, channels)
    for left_out in (parts[:, -1, :, 0], parts[:, 0, :, 1], parts[:, :, -1, :, 0], parts[:, :, 0, :, 1]):
        left_out.zero_()
    for row, column in product(range(2), repeat=2):
        parts[:, row : row + height // 2, column : column + width // 2, row, column] = pixels[:, :, row, :, column]
    return parts.flatten(3).permute(0, 3, 1, 2)


def weight_gradient(inputs: torch.Tensor, grad: torch.Tensor, side: int) -> torch.Tensor:
    """(C_out, C_in, side, side) of a convolution padded by 1, from inputs (N, C_in, H, W) and its outputs' gradient.

    With a frame of zeros around each image, all pixels lie in one row. In this row a neighbour is a fixed step away,
    the same for every pixel, so that no pixel has to be copied.
    """
    frame, width = side - 1, inputs.shape[3] + 2
    # (P, C_in) and (P, C_out), where P = N * (H + 2) * (W + 2)
    pixels = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)
    grads = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, frame, 0, frame)).flatten(0, 2)
    last = len(pixels) - frame * (width + 1)  # only frame lies behind
    sums = inputs.new_zeros(side**2, grads.shape[1], pixels.shape[1])
    for start in range(0, last, ROWS):
        stop = min(start + ROWS, last)
        transposed = grads[start:stop].t()
        for total, (row, column) in zip(sums, product(range(side), repeat=2), strict=True):
            step = row * width + column
            total.addmm_(transposed, pixels[start + step : stop + step])
    return sums.permute(1, 2, 0).reshape(*sums.shape[1:], side, side)
