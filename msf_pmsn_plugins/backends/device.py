"""Tensors as the kernels of a GPU take them: on one device, in one piece or step by step, without lazy bits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Steps", "as_laid_out", "check_beside", "empty", "parts", "plain", "steps_of"]


def check_beside(
    x: Tensor, dtype: torch.dtype | None, others: dict[str, Tensor | None], backend: str
) -> None:
    """Raise unless all ``others`` lie where ``x`` does, in ``dtype`` (complex, or int64 lengths; None: any)."""
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f"backend {backend!r} needs all tensors on one device: the input is on {x.device}, {name} on "
                f"{tensor.device}. Move the neuron and its state to {x.device}"
            )
        if dtype is None:
            continue
        expected = torch.int64 if name == "lengths" else dtype.to_complex() if tensor.is_complex() else dtype
        if tensor.dtype != expected:
            raise TypeError(
                f"backend {backend!r} needs {name} in {expected} for this input, got {tensor.dtype}"
            )


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


def empty(shape: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a kernel to fill."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def parts(count: int, size: int) -> int:
    """How many parts of ``size`` hold ``count``."""
    return -(-count // size)
