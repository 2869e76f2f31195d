"""Half-precision sequences for a backend whose kernels know none: widened on the way in, rounded on the way out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["HALF", "widens"]

HALF = (torch.float16, torch.bfloat16)

Call = TypeVar("Call", bound=Callable[..., Any])


def widens(call: Call) -> Call:
    """A forward or backward for sequences of any dtype, from one for float32 and float64."""

    @functools.wraps(call)
    def run(*args: Any) -> Any:
        x_seq = args[0] if isinstance(args[0], Tensor) else args[1]  # a backward begins with the gradients
        if x_seq.dtype not in HALF:
            return call(*args)
        first, *others = call(*map(_wide, args))
        # Counts, or the gradient of the input: no other output has its dtype.
        return first.to(x_seq.dtype), *others

    return run  # type: ignore[return-value]


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_wide, value))
    return value
