"""Tensors as kernels take them: addresses of memory that stays alive as long as a call may use it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Memory", "ceil", "check"]

HUGE = 4 << 20  # bytes from which memory is asked for in huge pages


def ceil(count: int, size: int) -> int:
    """How many pieces of ``size`` cover ``count``."""
    return -(-count // size)


def check(x: Tensor) -> None:
    """Raise unless our kernels take the device and the dtype of ``x``."""
    if x.device.type != "cpu":
        raise ValueError(
            f"the numba backend runs on CPU tensors, this input is on {x.device}: move it, or set "
            "backend='auto'"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the numba backend computes in float32 and float64, got {x.dtype}: widen the input first")


class Memory:
    """The tensors of one call of a kernel in ``dtype``. No step of a sequence is copied if each step is contiguous,
    whatever the stride over time; other layouts are copied once.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.alive: list[Any] = []

    def new(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous memory that a kernel will write, every element once."""
        x = torch.empty(tuple(shape), dtype=dtype or self.dtype)
        if x.nbytes >= HUGE:
            _ask_huge(x.data_ptr(), x.nbytes)
        return x

    def at(self, x: Tensor | None, dtype: torch.dtype | None = None) -> int:
        """The address of a tensor, or of its contiguous copy; 0 for None."""
        if x is None:
            return 0
        x = plain(x, dtype or self.dtype)
        self.alive.append(x)
        return x.data_ptr()

    def complex_at(self, x: Tensor | None) -> int:
        """The same for a complex tensor."""
        return self.at(x, self.dtype.to_complex())

    def steps(self, x_seq: Tensor | None) -> tuple[int, int]:
        """The address of a sequence and its stride over time; zeros for None."""
        if x_seq is None:
            return 0, 0
        x_seq = contiguous_steps(x_seq, self.dtype)
        self.alive.append(x_seq)
        return x_seq.data_ptr(), x_seq.stride(0)

    def modes(self, z: Tensor) -> int:
        """The address of the hidden state of PMSN: 0 for modes at rest, where one zero stands for all."""
        if z.numel() > 1 and not any(z.stride()) and z[(0,) * z.dim()].item() == 0:
            return 0
        return self.complex_at(z)

    def numbers(self, values: Any) -> int:
        """The address of an array of numbers in the dtype of the call."""
        array = np.array(values, number_type(self.dtype))
        self.alive.append(array)
        return int(array.ctypes.data)


def number_type(dtype: torch.dtype) -> Any:
    """NumPy's type of a number."""
    return np.float64 if dtype == torch.float64 else np.float32


def plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in ``dtype``, with no pending conjugation or sign; the tensor itself where it is all that."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    return x if x.is_contiguous() else x.contiguous()


def contiguous_steps(x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """A sequence whose steps are contiguous; copied only where they are not."""
    if x_seq.is_contiguous() or x_seq.dtype != dtype or x_seq.is_neg():
        return plain(x_seq, dtype)
    if x_seq[0].is_contiguous():
        return x_seq
    # The same step all along, such as the gradient of a sum, is one step and no stride.
    return x_seq[:1].contiguous().expand(x_seq.shape) if x_seq.stride(0) == 0 else x_seq.contiguous()


def _advise() -> Callable[[int, int], None]:
    """The function that asks for huge pages: touching fresh memory page by page costs more than the kernels do."""
    if sys.platform != "linux":
        return lambda address, nbytes: None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page, hugepage = mmap.PAGESIZE, 14  # MADV_HUGEPAGE; a kernel without them says so, and is not listened to

    def advise(address: int, nbytes: int) -> None:
        start = ceil(address, page) * page
        madvise(start, (address + nbytes - start) // page * page, hugepage)

    return advise


_ask_huge = _advise()
