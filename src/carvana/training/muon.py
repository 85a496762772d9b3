"""Muon for the weights of convolutions outside the encoder (Jordan et al., 2024), AdamW for all else."""

import torch

MOMENTUM = 0.95
STEPS = ((3.4445, -4.775, 2.0315),) * 5  # of the Newton-Schulz iteration: Jordan's coefficients
RMS = 0.2  # of an update over the rate, about that of AdamW's (Liu et al., 2025), so that both take one rate


class Muon(torch.optim.AdamW):
    """AdamW, but weights that mix channels, (C_out, C_in, ...), move by an orthogonal matrix.

    In the momentum of a convolution a few directions are far larger than the others, which hardly move for it. The
    nearest orthogonal matrix moves all of them alike. Groups marked `encoder` are AdamW's: a pretrained encoder gains
    nothing by it, and would take nine tenths of the multiplications.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in () if group.get("encoder") else group["params"]:
                if parameter.grad is not None and mixes_channels(parameter):
                    self._move(parameter, group["lr"], group["weight_decay"])
                    parameter.grad = None  # nothing is left for AdamW
        super().step(closure)

    def _move(self, parameter: torch.Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:  # AdamW wants to find a step when a state is loaded
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
        momentum = state["momentum"]
        momentum.lerp_(parameter.grad, 1 - MOMENTUM)
        matrix = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's look ahead: (C_out, C_in * h * w)
        update = orthogonalize(matrix).reshape(parameter.shape)
        parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * RMS * max(matrix.shape) ** 0.5)


def mixes_channels(parameter: torch.Tensor) -> bool:
    """Not those of norms and of depthwise convolutions, nor what gives a single logit."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 1


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with orthonormal rows or columns, whichever are fewer: singular values near 1.

    The iteration X <- a X + b (X X') X + c (X X')^2 X multiplies X by polynomials of the small square G = X X', so that
    only G and the product of these polynomials are computed: a fifth of the multiplications, and exact in float32.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T).T
    matrix = matrix / (matrix.norm() + 1e-7)  # no singular value is above 1
    gram = matrix @ matrix.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for a, b, c in STEPS:
        polynomial = a * identity + b * gram + c * (gram @ gram)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial  # all of them are symmetric and commute
    return product @ matrix
