"""Gradient checkpointing: activations are forgotten, and computed again in backward (Chen et al., 2016)."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class CheckpointedNetwork(nn.Module):
    """A network that can keep, while it trains, no more than what enters its blocks.

    Blocks are called through `run`; timm's encoders have a switch of their own. BatchNorm would count every batch
    twice, once for each time it is computed, so that its running statistics stand still during backward.
    """

    def __init__(self, grad_checkpointing: bool):
        super().__init__()
        self.grad_checkpointing = grad_checkpointing
        self.momenta: dict[nn.Module, float] = {}  # of each BatchNorm
        if grad_checkpointing:
            self.register_forward_pre_hook(_before_forward)
            self.register_forward_hook(_after_forward)

    def run(self, block: nn.Module, *inputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """`block(*inputs)`, computed again in backward if the network is a checkpointing one."""
        if self.grad_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def _before_forward(network: CheckpointedNetwork, _inputs: tuple) -> None:
    """BatchNorms have their momentum; encoders checkpoint in training only."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = network.momenta.setdefault(module, module.momentum)
        if hasattr(module, "set_grad_checkpointing"):
            module.set_grad_checkpointing(network.training)


def _after_forward(network: CheckpointedNetwork, _inputs: tuple, logits: torch.Tensor) -> None:
    """Has BatchNorms held as soon as backward begins, which is when the logits have their gradient."""
    if logits.requires_grad:
        logits.register_hook(lambda _gradient: _hold_statistics(network))


def _hold_statistics(network: CheckpointedNetwork) -> None:
    for norm in network.momenta:
        norm.momentum = 0.0
