"""Read a quantiser to the bit: the very floats at which it steps."""

from __future__ import annotations

import itertools
import struct

import torch
from torch import Tensor, nn

from .experiments import copy_at_rest, unit_of
from .running import output_of

__all__ = ["levels"]


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
