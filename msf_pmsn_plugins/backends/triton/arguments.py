"""Tensors and numbers as kernels take them: checked, in one piece, rounded once."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import launch

LEGAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check(x: Tensor, dtype: torch.dtype | None = None, **others: Tensor | None) -> None:
    """Raise unless all tensors lie on one device that can run kernels, in ``dtype`` (complex, or int64 lengths)."""
    launch.check(x)
    if x.dtype not in LEGAL:
        raise TypeError(
            f"backend 'triton' has no kernel for {x.dtype}: convert the input to one of {', '.join(map(str, LEGAL))}"
        )
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f"backend 'triton' needs all tensors on one device: the input is on {x.device}, {name} on "
                f"{tensor.device}. Move the neuron and its state to {x.device}"
            )
        if dtype is None:
            continue
        expected = torch.int64 if name == "lengths" else dtype.to_complex() if tensor.is_complex() else dtype
        if tensor.dtype != expected:
            raise TypeError(f"backend 'triton' needs {name} in {expected} for this input, got {tensor.dtype}")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states for sequences in ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def plain(tensor: Any) -> Any:
    """Contiguous, and without torch's lazy conjugation and negation, which a pointer would not show."""
    return None if tensor is None else tensor.resolve_conj().resolve_neg().contiguous()


class Steps(NamedTuple):
    """A sequence whose steps are contiguous, and the distance between them."""

    seq: Tensor | None
    distance: int


def steps_of(seq: Tensor | None) -> Steps:
    """Neither a slice nor an expanded step is copied."""
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


def empty(shape: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a kernel to fill."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


@functools.cache
def table(numbers: tuple[float, ...], dtype: torch.dtype, where: torch.device) -> Tensor:
    """Constants in memory: a float that is passed to a kernel of Triton is a float32.

    Kept for good, some hundred bytes for each set of numbers: a captured graph may hold its address.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=where)
