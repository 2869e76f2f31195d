"""Slopes for the kernels of a surrogate without a name, which torch computes: at some membranes after others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..surrogate import FireFunction, slope_of
from .autograd import no_dispatch
from .layout import memory_order, permuted

__all__ = ["FEW", "in_parts", "slopes_at"]

# Slopes that are made at once. What a surrogate computes between stays in the caches of a CPU; memory is bounded
# elsewhere too, with parts that fill a device.
ON_CPU, ELSEWHERE = 1 << 17, 1 << 22
# Membranes up to which the calls cost more than the computation.
FEW = 1 << 14


def in_parts(*tensors: Tensor, by_step: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors [T, N, *] that lie alike in memory: the same elements of each, until all were there.

    Args:
        tensors: dense, with equal strides.
        by_step: whole steps, [t, N, *]; otherwise [n] elements in the order of memory.
    """
    first = tensors[0]
    # Who watches (a compiler, a counter) is shown one call rather than many.
    size = ON_CPU if first.is_cpu and no_dispatch(*tensors) else ELSEWHERE
    order = memory_order(first, 0)
    lying = [permuted(t, order) for t in tensors]
    if by_step or not all(t.is_contiguous() for t in lying):
        size //= max(1, first[:1].numel())
    else:
        tensors = tuple([t.view(-1) for t in lying])
    return zip(*(t.split(max(1, size)) for t in tensors), strict=True)


def slopes_at(surrogate: FireFunction, m: Tensor, thresholds: Sequence[float | Tensor]) -> Iterable[Tensor]:
    """The slopes at ``m`` of the spikes over each threshold."""
    if m.numel() > FEW or len(thresholds) == 1:  # one after the other: memory does not grow with their number
        return (slope_of(surrogate, m - theta) for theta in thresholds)
    return slope_of(surrogate, torch.stack([m - theta for theta in thresholds])).unbind()
