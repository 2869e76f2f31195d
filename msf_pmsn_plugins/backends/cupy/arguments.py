"""Tensors and numbers as kernels take them: checked, in one piece, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device import check_beside
from . import launch

ELEMENTS = {
    torch.float32: "IO_FLOAT",
    torch.float64: "IO_DOUBLE",
    torch.float16: "IO_HALF",
    torch.bfloat16: "IO_BFLOAT16",
}

# The two constants p and q of each surrogate (surrogate.cuh) with the width a, in double.
SLOPES: dict[str, Callable[[float], tuple[float, float]]] = {
    "rectangular": lambda a: (a, 0.5 / a),
    "sigmoid": lambda a: (a, 0.0),
    "atan": lambda a: (math.pi / 2 * a, a / 2),
    "gaussian": lambda a: (a, a * math.sqrt(2 * math.pi)),
    "triangle": lambda a: (a, 0.0),
}


def check(x: Tensor, dtype: torch.dtype | None = None, **others: Tensor | None) -> None:
    """Raise unless all tensors lie on one device that can run kernels, in ``dtype`` (complex, or int64 lengths)."""
    launch.device.check(x)
    check_beside(x, dtype, others, "cupy")


def element(dtype: torch.dtype) -> str:
    """The macro ``IO`` of a dtype; raise TypeError where no kernel has it."""
    if dtype not in ELEMENTS:
        known = ", ".join(map(str, ELEMENTS))
        raise TypeError(f"backend 'cupy' has no kernel for {dtype}: convert the input to one of {known}")
    return ELEMENTS[dtype]


def real(dtype: torch.dtype) -> Any:
    """The numpy type of states and constants; rounds a python float once."""
    return np.float64 if dtype == torch.float64 else np.float32


def packed(args: Iterable[Any], dtype: torch.dtype) -> list[Any]:
    """Arguments of a launch: ints in 64 bits, floats rounded to the states' ``dtype``, all else as it is."""
    kinds = {int: np.int64, float: real(dtype)}
    return [kinds[type(arg)](arg) if type(arg) in kinds else arg for arg in args]
