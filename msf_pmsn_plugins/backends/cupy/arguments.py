"""Tensors and numbers as kernels take them: checked, in one piece, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f"backend 'cupy' needs all tensors on one device: the input is on {x.device}, {name} on "
                f"{tensor.device}. Move the neuron and its state to {x.device}"
            )
        if dtype is None:
            continue
        expected = torch.int64 if name == "lengths" else dtype.to_complex() if tensor.is_complex() else dtype
        if tensor.dtype != expected:
            raise TypeError(f"backend 'cupy' needs {name} in {expected} for this input, got {tensor.dtype}")


def element(dtype: torch.dtype) -> str:
    """The macro ``IO`` of a dtype; raise TypeError where no kernel has it."""
    if dtype not in ELEMENTS:
        known = ", ".join(map(str, ELEMENTS))
        raise TypeError(f"backend 'cupy' has no kernel for {dtype}: convert the input to one of {known}")
    return ELEMENTS[dtype]


def real(dtype: torch.dtype) -> Any:
    """The numpy type of states and constants; rounds a python float once."""
    return np.float64 if dtype == torch.float64 else np.float32


def plain(tensor: Any) -> Any:
    """Contiguous, and without torch's lazy conjugation and negation, which a pointer would not show."""
    return None if tensor is None else tensor.resolve_conj().resolve_neg().contiguous()


class Steps(NamedTuple):
    """A sequence whose steps are contiguous, and the distance between them."""

    seq: Tensor | None
    distance: int


def steps_of(seq: Tensor | None) -> Steps:
    """``seq`` where it lies: neither a slice nor an expanded step is copied."""
    if seq is None:
        return Steps(None, 0)
    seq = seq.resolve_neg()
    if len(seq) < 2 or not seq[0].is_contiguous():
        return Steps(seq.contiguous(), math.prod(seq.shape[1:]))
    return Steps(seq, seq.stride(0))


def as_laid_out(seq: Tensor, like: Tensor) -> Tensor:
    """The contiguous ``seq`` in the layout that ``torch.empty_like(like)`` has: outputs keep that of their inputs."""
    if like.is_contiguous():
        return seq
    out = torch.empty_like(like, dtype=seq.dtype)
    return seq if out.is_contiguous() else out.copy_(seq)


def packed(args: Iterable[Any], dtype: torch.dtype) -> list[Any]:
    """Arguments of a launch: ints in 64 bits, floats rounded to the states' ``dtype``, all else as it is."""
    kinds = {int: np.int64, float: real(dtype)}
    return [kinds[type(arg)](arg) if type(arg) in kinds else arg for arg in args]


def empty(shape: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a kernel to fill."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def parts(count: int, size: int) -> int:
    """How many parts of ``size`` hold ``count``."""
    return -(-count // size)
