"""What several networks share: layers over [T, N, *] with time and batch together, dropout tied over time, lengths."""

import torch
from torch import Tensor, nn

from msf_pmsn_plugins.lengths import valid_steps
from msf_pmsn_plugins.spikingjelly import SpikingJellyNode

__all__ = ["TiedDropout", "fire", "mean_over_time", "per_step", "valid"]


def per_step(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` on every step of ``x`` [T, N, *]: batch norms see time and batch together."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class TiedDropout(nn.Module):
    """Drop whole channels of ``x`` [T, N, C, *], the same ones at every step and position."""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the dropout probability must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[1:3], device=x.device) >= self.p
        keep = keep.to(x.dtype) / (1 - self.p)
        return x * keep.reshape(*keep.shape, *[1] * (x.dim() - 3))

    def extra_repr(self):
        return f"p={self.p}"


def valid(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """``lengths`` [N] (or a mask [T, N]) as a mask for ``x`` [T, N, *]; None: all steps are valid."""
    return None if lengths is None else valid_steps(x, lengths)


def fire(node: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """The output of a neuron for ``x`` [T, N, *], 0 at padded steps."""
    if mask is None:
        return node(x)
    live = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    if isinstance(node, SpikingJellyNode):
        return node(x, lengths=mask)
    return torch.where(live, node(torch.where(live, x, 0.0)), 0.0)


def mean_over_time(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``x`` [T, N, C] over the valid steps of each sample; ``x`` is 0 at the others."""
    return x.mean(0) if mask is None else x.sum(0) / mask.sum(0).clamp(min=1).unsqueeze(-1)
