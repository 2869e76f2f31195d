"""Tensors as kernels take them: addresses of memory that stays alive as long as a call may use it.

A sequence [T, N, *] is walked where it lies if each of its rows [*] is contiguous, whatever its strides over T and N;
others are copied once.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SMALL", "Memory", "address", "ceil", "check", "is_small", "number_type", "plain"]

HUGE = 4 << 20  # bytes from which memory is asked for in huge pages
SMALL = 1 << 16  # lanes times steps; below, a second thread costs more than it brings
SHORT = 32  # numbers; shorter rows that are apart waste a vector each


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
        raise TypeError(
            f"the numba backend computes in float32 and float64, got {x.dtype}: widen the input first"
        )


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


def walkable(x_seq: Tensor) -> bool:
    """Whether kernels can walk a sequence where it lies."""
    if x_seq.is_contiguous():
        return True
    row = x_seq[0, 0]
    return row.is_contiguous() and (
        row.numel() >= SHORT or len(x_seq[0]) == 1 or x_seq.stride(1) == row.numel()
    )


def is_small(x_seq: Tensor, *others: Tensor | None) -> bool:
    """Whether a call is one thread's work on tensors that lie as kernels take them, all in one dtype."""
    dtype = x_seq.dtype
    return x_seq.numel() < SMALL and all(
        x is None
        or ((x.dtype == dtype or x.is_complex()) and x.is_contiguous() and not (x.is_neg() or x.is_conj()))
        for x in (x_seq, *others)
    )


def address(x: Tensor | None) -> int:
    """Of a tensor that lies as kernels take it; 0 for None or an empty one."""
    return 0 if x is None else x.data_ptr()


class Memory:
    """The tensors of one call of a kernel, whose sequences have the ``shape`` [T, N, *]."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.steps, self.rows = shape[0], shape[1]
        self.lanes = 1
        for size in shape[1:]:
            self.lanes *= size
        self.row = self.lanes // max(1, self.rows)
        self.apart = False  # whether the rows of a sequence lie apart
        self.alive: list[Any] = []
        self._written: list[tuple[Tensor, Tensor]] = []

    # What kernels read.

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

    def modes_at(self, z: Tensor) -> int:
        """The same for the hidden state of PMSN: 0 for modes at rest, where one zero stands for all."""
        if z.numel() > 1 and not any(z.stride()) and z[(0,) * z.dim()].item() == 0:
            return 0
        return self.complex_at(z)

    def lanes_at(self, x: Tensor | None, like: Tensor) -> int:
        """The same for a tensor that broadcasts against ``like``, one number a lane."""
        return 0 if x is None else self.at(x.detach().expand(like.shape))

    def numbers_at(self, values: tuple[float, ...]) -> int:
        """The address of numbers in the dtype of the call."""
        array = _numbers(values, self.dtype)
        self.alive.append(array)
        return int(array.ctypes.data)

    def sequence(self, name: str, x_seq: Tensor | None, dtype: torch.dtype | None = None) -> dict[str, int]:
        """The fields of a record that say where a sequence lies: zeros for None."""
        if x_seq is None:
            return {name: 0, f"{name}_step": 0, f"{name}_row": 0}
        if not walkable(x_seq) and x_seq.stride(0) == 0:
            # The same step all along, such as the gradient of a sum, is one step and no stride.
            x_seq = plain(x_seq[:1], dtype or self.dtype).expand(x_seq.shape)
        elif not walkable(x_seq) or x_seq.dtype != (dtype or self.dtype) or x_seq.is_neg():
            x_seq = plain(x_seq, dtype or self.dtype)
        self.alive.append(x_seq)
        return {name: x_seq.data_ptr(), **self._strides(name, x_seq)}

    # What kernels write, every element once.

    def new(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous memory."""
        return _huge(torch.empty(tuple(shape), dtype=dtype or self.dtype))

    def like(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Memory in the layout of ``x``, if that is dense."""
        return _huge(torch.empty_like(x, dtype=dtype or self.dtype))

    def to(self, x: Tensor | None) -> int:
        """The address of a tensor to be written; 0 for None or an empty one."""
        return 0 if x is None or x.numel() == 0 else self._to(x, x.is_contiguous())

    def to_sequence(self, x_seq: Tensor) -> int:
        """The same for a sequence."""
        return 0 if x_seq.numel() == 0 else self._to(x_seq, walkable(x_seq))

    def _to(self, x: Tensor, direct: bool) -> int:
        if not direct:
            target, x = x, torch.empty(x.shape, dtype=x.dtype)
            self._written.append((target, x))
        self.alive.append(x)
        return x.data_ptr()

    def written(self, x_seq: Tensor) -> dict[str, int]:
        """The strides of the sequences that are written, all in the layout of ``x_seq``."""
        if walkable(x_seq):
            return self._strides("out", x_seq)
        return {"out_step": self.lanes, "out_row": self.row}

    def finish(self) -> None:
        """Copy what kernels could not write where it belongs."""
        for target, x in self._written:
            target.copy_(x)

    def _strides(self, name: str, x_seq: Tensor) -> dict[str, int]:
        row = x_seq.stride(1) if self.rows > 1 else self.row
        self.apart |= row != self.row
        return {f"{name}_step": x_seq.stride(0), f"{name}_row": row}


@functools.lru_cache(256)
def _numbers(values: tuple[float, ...], dtype: torch.dtype) -> Any:
    return np.array(values, number_type(dtype))


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


def _huge(x: Tensor) -> Tensor:
    if x.nbytes >= HUGE:
        _ask_huge(x.data_ptr(), x.nbytes)
    return x
