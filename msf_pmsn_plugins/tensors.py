"""Tensors that go together between an op and its backend, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "MSFGrads",
    "MSFParameters",
    "PMSNGrads",
    "PMSNState",
    "PMSNWeights",
    "Slopes",
    "floating",
    "of_parameters",
    "stacked_strides",
    "state_dtype",
]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States are float64 for float64 inputs and float32 for all others: half precision loses spikes."""
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return torch.float64 if dtype == torch.float64 else torch.float32


def floating(x: Tensor) -> Tensor:
    """``x``; integers and booleans in torch's default dtype, to which the hosts promote them."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.is_quantized:
        return x
    return x.to(torch.get_default_dtype())


def stacked_strides(like: Tensor) -> tuple[int, ...] | None:
    """Those of a stack of results ``like[t] * slope`` in torch's own layout; None where there is nothing to follow."""
    if like.shape[0] == 0 or like.is_contiguous():
        return None
    step = like[0]
    if not any(step.stride()):  # one number for all
        return None
    step = torch.empty_like(step, device="meta")
    # stack() knows channels_last, and no other orders.
    return torch.stack([step] * min(2, like.shape[0])).stride()


class MSFParameters(NamedTuple):
    """What may be learned, or differ between the elements of one step [N, *]: None is the number in the settings."""

    rate: Tensor | None = None
    threshold: Tensor | None = None  # the first one, volts
    reset: Tensor | None = None  # what a soft reset subtracts per spike, volts


class MSFGrads(NamedTuple):
    """Gradients to the outputs of MSF; None is zero."""

    s: Tensor | None  # counts [T, N, *]
    m: Tensor | None  # membranes [T, N, *]
    v: Tensor | None  # last state [N, *]


class Slopes(NamedTuple):
    """What a surrogate without a name gives at the membranes before the reset, [T, N, *]."""

    total: Tensor  # summed over the thresholds
    # At the first one: a reset that looks at it alone and is not detached needs it.
    first: Tensor | None = None


class PMSNState(NamedTuple):
    """The state of PMSN, or its gradient."""

    r: Tensor  # residual in units of the threshold, [L, C, K]
    z: Tensor  # hidden state, complex [L, C, K, modes]


class PMSNWeights(NamedTuple):
    """The weights of the recurrence, or their gradients: ``z <- z + (e z + x)``, ``y = Re(sum w z) + d x``.

    ``e = a - 1`` keeps its digits where ``a`` lies close to 1: a rounded ``a`` errs the same way at every step.
    """

    e: Tensor  # complex [C, modes]
    w: Tensor  # complex [C, modes]
    d: Tensor  # [C]


class PMSNGrads(NamedTuple):
    """Gradients to the outputs of PMSN; None is zero."""

    s: Tensor | None  # spikes [T, L, C, K]
    y: Tensor | None  # drives [T, L, C, K]
    m: Tensor | None  # membranes [T, L, C, K]
    r: Tensor | None
    z: Tensor | None


def of_parameters(
    sums: Iterable[Tensor | None], parameters: MSFParameters, largest: Tensor | None
) -> MSFParameters:
    """Gradients of parameters from sums over time, one a lane [N, *], in the strides of each parameter.

    A lane lost to NaN leaves what it shares the gradient of the other lanes: ``largest`` are the largest membranes of
    each lane [N, *], NaN where one was; None where nothing is known of them.
    """
    lost = None if largest is None else largest.isnan()

    def share(g: Tensor | None, parameter: Tensor | None) -> Tensor | None:
        if g is None or parameter is None:
            return None
        gone = g.isnan() if lost is None else lost | g.isnan()
        # In the layout of g, whatever that of the membranes: it decides the order of the sum.
        total = g.masked_fill(gone, 0.0).sum_to_size(parameter.shape)
        return torch.empty_like(parameter).copy_(total)

    return MSFParameters(*map(share, sums, parameters))
