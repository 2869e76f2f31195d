"""Memory layouts: backends walk [T, N, rest] with a contiguous rest; other orders of the rest come and go as views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..tensors import stacked_strides
from .autograd import no_autograd

__all__ = [
    "GradientLayout",
    "as_steps_of",
    "gradient_laid_out",
    "laid_as",
    "memory_order",
    "owned",
    "permuted",
    "reshaped",
]


def memory_order(x: Tensor, first: int) -> tuple[int, ...] | None:
    """The axes of ``x`` with those from ``first`` on in the order of memory; None where they are so already.

    Also None where that order is not plain: expanded axes, or strides that are symbols, whose comparison would bind
    the sizes of an exported program.
    """
    if x.is_contiguous():
        return None
    axes = [d for d in range(first, x.dim()) if x.shape[d] != 1]
    strides = [x.stride(d) for d in axes]
    if not all(type(stride) is int and stride > 0 for stride in strides):
        return None
    order = sorted(axes, key=x.stride, reverse=True)
    if order == axes:
        return None
    single = [d for d in range(first, x.dim()) if x.shape[d] == 1]
    return (*range(first), *order, *single)


def permuted(x: Tensor, order: tuple[int, ...] | None, back: bool = False) -> Tensor:
    """``x`` with its axes in ``order`` (None: as they are), or back from it; axes in front are left alone if ``x`` is
    one step of what the order was made for.
    """
    if order is None:
        return x
    skipped = len(order) - x.dim()  # one step has no time axis
    order = tuple(d - skipped for d in order[skipped:])
    return owned(x.permute([order.index(d) for d in range(len(order))])) if back else x.permute(order)


def owned(out: Tensor) -> Tensor:
    """``out``, a view of what nobody else has: the caller may change it in place, with a gradient too."""
    return out.detach() if no_autograd() else out  # torch refuses that on views which no_grad made


def reshaped(out: Tensor, shape: torch.Size) -> Tensor:
    """``out``, of nobody else and not saved for a backward, in ``shape``: no view if its memory is in order, for
    ``detach_`` refuses views.
    """
    if out.is_contiguous():
        return torch.ops.aten._unsafe_view.default(out, shape)
    return owned(out.reshape(shape))


def as_steps_of(g_seq: Tensor, like: Tensor | None) -> Tensor:
    """A gradient [T, N, *] in the layout of a stack of steps ``like[t] * slope``.

    So do the hosts' neurons return it, and a layer in front that sums in memory order adds in the same order.
    """
    if like is None or like.shape[0] == 0 or (like.is_contiguous() and g_seq.is_contiguous()):
        return g_seq
    strides = like.stride() if like.is_contiguous() else stacked_strides(like)
    if strides is None or g_seq.stride() == strides:
        return g_seq
    return g_seq.new_empty_strided(g_seq.shape, strides).copy_(g_seq)


def laid_as(g_seq: Tensor, x: Tensor) -> Tensor:
    """A gradient in the layout of ``empty_like(x)``, which an op promises; backends may choose another."""
    if g_seq.stride() == torch.empty_like(x, device="meta").stride():
        return g_seq
    return torch.empty_like(x, dtype=g_seq.dtype).copy_(g_seq)


def gradient_laid_out(x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """``x``, whose gradient will lie as ``torch.empty_like(x, memory_format=memory_format)``."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x
    return _Strided.apply(x, torch.empty_like(x, device="meta", memory_format=memory_format).stride())


class GradientLayout:
    """:func:`as_steps_of` around a computation whose views change the axes: the gradient that comes in at its output
    is seen, and the one that goes out at its input laid out like it.
    """

    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def input(self, x_seq: Tensor) -> Tensor:
        """``x_seq``, whose gradient will have the layout of that of the output."""
        return _LaidOut.apply(x_seq, self) if x_seq.requires_grad else x_seq

    def output(self, s_seq: Tensor) -> Tensor:
        """``s_seq``, whose gradient is looked at."""
        return _Seen.apply(s_seq, self) if s_seq.requires_grad else s_seq


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s_seq: Tensor, layout: GradientLayout) -> Tensor:
        ctx.layout = layout
        return s_seq.detach()  # a view made in here could not be changed in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.layout.seen = torch.empty_strided(grads[0].shape, grads[0].stride(), device="meta")
        return grads[0], None


class _LaidOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, layout: GradientLayout) -> Tensor:
        ctx.layout = layout
        return x_seq.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return as_steps_of(grads[0], ctx.layout.seen), None


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.strides = strides
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g if g.stride() == ctx.strides else g.new_empty_strided(g.shape, ctx.strides).copy_(g), None
