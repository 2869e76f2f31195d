"""Read a quantiser to the bit: the very floats at which it steps, and the gradient that it passes."""

from __future__ import annotations

import itertools
import struct

import torch
from torch import Tensor, nn

from ..surrogate import Surrogate, summed_slope
from .experiments import copy_at_rest, unit_of
from .running import output_of

__all__ = ["levels", "window"]


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def levels(module: nn.Module, device: torch.device) -> tuple[list[float], float, float]:
    """The float32 numbers at which a quantiser steps to q, 2q .. nq, and what a count is multiplied and divided by.

    Of ``nn.ReLU``: no numbers.

    Raises:
        ValueError: not element by element, not monotone, not 0 below 0, no multiples of one number.
    """
    pristine = copy_at_rest(module).eval()
    name = type(module).__name__

    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            return output_of(pristine(x.to(device).unsqueeze(0))).squeeze(0)

    grid = torch.linspace(-8, 64, 9001)
    try:
        y = f(grid)
    except Exception as error:
        raise ValueError(f"{name} does not run on single numbers, so it is no activation: {error}") from error
    if isinstance(module, nn.ReLU) or torch.equal(y, grid.clamp(min=0).to(y)):
        return [], 1.0, 1.0
    top = float(f(torch.tensor([3e38])))
    if float(y[grid < 0].abs().max()) != 0 or bool((y.diff() < 0).any()):
        raise ValueError(f"{name} is no quantiser from 0 upward: it must be 0 below 0 and never fall")
    unit, largest = unit_of([y, torch.tensor([top])])
    count = round(largest / unit) if unit else 0
    if unit is None or not 0 < count < 256:
        raise ValueError(f"{name} emits no multiples 0, q .. nq of one number (n < 256)")
    unit = float(y[y > 0].min())
    thresholds = []
    for level in range(1, count + 1):
        low, high = 0, 0x7F7FFFFF  # positive floats are ordered as their bits are
        while high - low > 1:
            middle = (low + high) // 2
            reached = float(f(torch.tensor([_float(middle)]))) >= (level - 0.5) * unit
            low, high = (low, middle) if reached else (middle, high)
        thresholds.append(_float(high))
    if float(f(torch.zeros(1))) != 0 or any(b <= a for a, b in itertools.pairwise(thresholds)):
        raise ValueError(f"{name} is no quantiser with {count} different steps above 0")
    counts = torch.arange(1.0, count + 1)
    emitted = torch.stack([f(torch.tensor([x]))[0] for x in thresholds]).cpu().float()
    for scale, divisor in ((unit, 1.0), (1.0, float(round(1 / unit)) if unit < 1 else 1.0)):
        if torch.equal(counts * scale / divisor, emitted):
            return thresholds, scale, divisor
    raise ValueError(f"{name} emits no exact multiples of {unit}")


def window(
    module: nn.Module, thresholds: list[float], scale: float, divisor: float, device: torch.device
) -> tuple[Surrogate | None, str]:
    """The rectangle at each threshold that passes the gradient of a quantiser, and what is not as it was.

    Between its levels a quantiser usually passes the gradient as if it were not there: rectangles as wide as the
    thresholds lie apart, side by side. None where they do not give what the quantiser passes.
    """
    n = len(thresholds)
    gap = (thresholds[-1] - thresholds[0]) / (n - 1) if n > 1 else 2 * thresholds[0]
    x = torch.rand(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = ((n + 3) * gap * x - 1.5 * gap).float()  # random: off the edges
    grads = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    inputs = x.to(device).unsqueeze(0).requires_grad_()
    y = output_of(copy_at_rest(module).train()(inputs))
    passed = None
    if y.requires_grad:
        (passed,) = torch.autograd.grad(y, inputs, grads.to(y).unsqueeze(0), allow_unused=True)
    if passed is None:
        return None, "the quantiser passes no gradient, and the new neuron does"
    passed, best = passed.squeeze(0).cpu(), None
    # The thresholds are off the even ones by a rounding: so is their distance.
    for width in dict.fromkeys((_rounded(gap), _rounded(2 * thresholds[0]), gap)):
        rectangle = Surrogate("rectangular", width / 2)
        ours = grads * scale / divisor * summed_slope(x, thresholds, rectangle)
        if torch.equal(ours, passed):
            return rectangle, ""
        if torch.allclose(ours, passed, 1e-3, 1e-5 * float(passed.abs().max())):
            best = best or rectangle
    if best is not None:
        return best, ""
    return None, "its gradient is that of MSF's surrogate, not what the quantiser passes"


def _rounded(width: float) -> float:
    """The number of few digits that ``width`` is meant to be."""
    return float(f"{width:.6g}")
