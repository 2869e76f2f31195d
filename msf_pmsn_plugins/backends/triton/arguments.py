"""Tensors and numbers as kernels take them: checked, in one piece, rounded once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..device import check_beside
from . import launch

LEGAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check(x: Tensor, dtype: torch.dtype | None = None, **others: Tensor | None) -> None:
    """Raise unless all tensors lie on one device that can run kernels, in ``dtype`` (complex, or int64 lengths)."""
    launch.check(x)
    if x.dtype not in LEGAL:
        raise TypeError(
            f"backend 'triton' has no kernel for {x.dtype}: convert the input to one of {', '.join(map(str, LEGAL))}"
        )
    check_beside(x, dtype, others, "triton")


@functools.cache
def table(numbers: tuple[float, ...], dtype: torch.dtype, where: torch.device) -> Tensor:
    """Constants in memory: a float that is passed to a kernel of Triton is a float32.

    Kept for good, some hundred bytes for each set of numbers: a captured graph may hold its address.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=where)
