"""Sequences [T, N, C, *] in every memory layout that hosts hand to a neuron."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = {
    "contiguous": (5, 2, 3, 4),
    "channels_last": (5, 2, 3, 2, 2),
    "channels_last_3d": (5, 2, 3, 2, 2, 2),
    "tokens": (5, 2, 3, 4),
    "batch_first": (5, 2, 3, 4),
    "batch_innermost": (5, 2, 3, 4),
    "time_slice": (5, 2, 3, 4),
    "expanded": (5, 2, 3, 4),
    "gaps": (5, 2, 3, 4),
}
DENSE = [name for name in SHAPES if name not in ("time_slice", "expanded", "gaps")]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` [T, N, C, *] in other memory; ``"expanded"`` repeats the first sample."""
    if layout in ("channels_last", "channels_last_3d", "tokens"):  # channels innermost
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "batch_first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "batch_innermost":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "time_slice":
        return x.repeat_interleave(2, 0)[::2]
    if layout == "expanded":
        return x[:, :1].expand_as(x)
    if layout == "gaps":
        return torch.stack([x, -x], -1)[..., 0]
    return x.contiguous()
