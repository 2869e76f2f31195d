"""Tensors as kernels take them: addresses of memory that stays alive as long as a call may use it.

A sequence [T, N, *] is walked where it lies if each of its rows [*] is contiguous, whatever its strides over T and N;
others are copied once.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...tensors import stacked_strides

__all__ = ["Tensors", "Walk", "ceil", "check", "gradient_like", "like", "new", "numbers", "ready", "walk"]

HUGE = 4 << 20  # bytes from which memory is asked for in huge pages
LARGE = 1 << 20  # bytes from which memory is worth keeping
KEPT = 3
COMPLEX = {torch.complex64: np.complex64, torch.complex128: np.complex128}
SHORT = 32  # numbers; shorter rows that are apart waste a vector each


def ceil(count: int, size: int) -> int:
    """How many pieces of ``size`` cover ``count``."""
    return -(-count // size)


def check(x: Tensor) -> None:
    """Raise unless our kernels take the device and the dtype of ``x``."""
    if not x.is_cpu:
        raise ValueError(
            f"the numba backend runs on CPU tensors, this input is on {x.device}: move it, or set "
            "backend='auto'"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the numba backend computes in float32 and float64, got {x.dtype}: widen the input first"
        )


# ---------------------------------------------------------------- layouts


class Walk(NamedTuple):
    """How kernels walk a sequence: where it lies, or a contiguous copy of it."""

    direct: bool
    step: int
    row: int
    apart: bool  # whether rows are no neighbours


@functools.lru_cache(1024)
def walk(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> Walk:
    """For a sequence that is not empty; None is one that is not there."""
    steps, rows, *sizes = shape
    row = math.prod(sizes)
    if stride is None:
        return Walk(True, 0, row, False)
    contiguous, expected = True, 1
    for size, distance in zip(reversed(sizes), reversed(stride[2:]), strict=True):
        contiguous &= size == 1 or distance == expected
        expected *= size
    apart = rows > 1 and stride[1] != row
    if contiguous and (row >= SHORT or not apart):
        return Walk(True, stride[0], stride[1] if rows > 1 else row, apart)
    # The same step all along, such as the gradient of a sum, is one step and no stride.
    return Walk(False, rows * row if stride[0] or steps == 1 else 0, row, False)


def ready(x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """A sequence in ``dtype``, with no pending sign."""
    return x_seq if x_seq.dtype == dtype and not x_seq.is_neg() else _plain(x_seq, dtype)


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in ``dtype``, with no pending conjugation or sign; the tensor itself where it is all that."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    return x if x.is_contiguous() else x.contiguous()


class Tensors:
    """The tensors of one call, alive as long as it is; dtypes are ``dtype`` and the complex one unless given."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._alive: list[Tensor] = []
        self._late: list[tuple[Tensor, Tensor]] = []

    # What kernels read: 0 for None.

    def at(self, x: Tensor | None, dtype: torch.dtype | None = None) -> int:
        """The address of a tensor, or of its contiguous copy."""
        if x is None:
            return 0
        x = _plain(x, dtype or self.dtype)
        self._alive.append(x)
        return x.data_ptr()

    def complex_at(self, x: Tensor | None) -> int:
        """The same for a complex tensor."""
        return self.at(x, self.dtype.to_complex())

    def modes_at(self, z: Tensor) -> int:
        """The same for the hidden state of PMSN: 0 for modes at rest, where one zero stands for all."""
        if z.numel() > 1 and not any(z.stride()) and z[(0,) * z.dim()].item() == 0:
            return 0
        return self.complex_at(z)

    def steps_at(self, x_seq: Tensor | None, walk: Walk) -> int:
        """The same for a sequence that is ``ready``."""
        if x_seq is None:
            return 0
        if not walk.direct:
            x_seq = (x_seq[:1] if walk.step == 0 else x_seq).contiguous()
        self._alive.append(x_seq)
        return x_seq.data_ptr()

    # What kernels write: 0 for None, or nothing.

    def to(self, x: Tensor | None) -> int:
        """The address of a tensor, or of memory that :meth:`finish` copies there."""
        return 0 if x is None or x.numel() == 0 else self._to(x, x.is_contiguous())

    def steps_to(self, x_seq: Tensor, walk: Walk) -> int:
        """The same for a sequence."""
        return self._to(x_seq, walk.direct) if x_seq.numel() else 0

    def _to(self, x: Tensor, direct: bool) -> int:
        if not direct:
            target, x = x, torch.empty(x.shape, dtype=x.dtype)
            self._late.append((target, x))
        self._alive.append(x)
        return x.data_ptr()

    def finish(self) -> None:
        """Copy what kernels could not write where it belongs."""
        for target, x in self._late:
            target.copy_(x)


# ---------------------------------------------------------------- new memory


def numbers(values: tuple[float, ...], dtype: torch.dtype) -> tuple[Any, int]:
    """Numbers in ``dtype`` and their address."""
    array = np.array(values, np.float64 if dtype == torch.float64 else np.float32)
    return array, int(array.ctypes.data)


def new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous memory that a kernel will write, every element once."""
    return _huge(torch.empty(tuple(shape), dtype=dtype))


def like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same in the layout of ``x``, if that is dense."""
    return _huge(torch.empty_like(x) if dtype is None else torch.empty_like(x, dtype=dtype))


def gradient_like(x: Tensor, dtype: torch.dtype, grads: Tensor | None) -> Tensor:
    """Memory for a gradient to ``x``, in the layout in which torch's own operations would return it for ``grads``.

    A copy after the kernel would cost a third of it. One step, and what has nothing to follow, lies as ``x``.
    """
    if grads is None or grads.shape[0] < 2:
        return like(x, dtype)
    strides = grads.stride() if grads.is_contiguous() else _stacked(grads.shape, grads.stride())
    return like(x, dtype) if strides is None else _huge(torch.empty_strided(x.shape, strides, dtype=dtype))


@functools.lru_cache(1024)
def _stacked(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...] | None:
    return stacked_strides(torch.empty_strided(shape, stride, device="meta"))


class Recycled:
    """Contiguous memory for large complex tensors of one shape, given out anew when nobody holds the tensor any more.

    An allocator gives memory of this size back to the system, and fetching it again costs more than the kernel that
    fills it. At most :data:`KEPT` are kept; of more at a time the rest come from the allocator.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._shape, self._dtype = tuple(shape), dtype
        self._nbytes = math.prod(shape) * dtype.itemsize
        self._kept: list[tuple[Any, Any]] = []  # memory, and the tensor's hold of it, a weak reference

    def new(self) -> Tensor:
        """Memory that a kernel will write, every element once."""
        if self._nbytes >= LARGE:
            for _ in range(len(self._kept)):
                try:  # lists are safe between threads: what is taken out is nobody else's
                    memory, held = self._kept.pop()
                except IndexError:
                    break
                if held() is None:
                    return self._give(memory)
                self._kept.insert(0, (memory, held))
            if len(self._kept) < KEPT:
                return self._give(_aligned(self._nbytes).view(COMPLEX[self._dtype]).reshape(self._shape))
        return torch.empty(self._shape, dtype=self._dtype)

    def _give(self, memory: Any) -> Tensor:
        array = memory[:]
        self._kept.append((memory, weakref.ref(array)))
        return torch.from_numpy(array)  # no view, which detach_() would refuse


def _aligned(nbytes: int) -> Any:
    array = np.empty(nbytes + 64, np.uint8)
    start = -array.ctypes.data % 64
    return array[start : start + nbytes]


def _huge(x: Tensor) -> Tensor:
    if x.nbytes >= HUGE:
        _ask_huge(x.data_ptr(), x.nbytes)
    return x


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
