"""Compiling: a kernel's text and the records that it is told become a C function for each dtype, at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.ccallback import CFunc

from ..cache import Cache
from .calls import ARRIVED, FINISHED, SHARE, TAKEN, Share, count_up, layout, reader
from .memory import CACHE_LINE


class Kernel:
    """A kernel by its text, ``text(first, last, memory, unit, call)``: the tasks (blocks or tiles) ``first`` to
    ``last - 1`` of a call, with a thread's own memory; ``unit`` is 1 in the dtype of the kernel.
    """

    def __init__(self, record: type, tensors: type, text: Callable[..., None]) -> None:
        self.name = text.__name__
        self.record, self.tensors = layout(record), layout(tensors)
        self._read = reader(record, tensors)
        self._text = text
        self._compiled: dict[str, CFunc] = {}

    def function(self, dtype: str) -> Any:
        """The C function for ``"float32"`` or ``"float64"``: called with the address of a Share and of the records
        after it, by as many threads as like, it works until no piece is left to take.
        """
        compiled = self._compiled.get(dtype)
        if compiled is None:
            # Of two threads the first stays: a function that is replaced may be called still.
            compiled = self._compiled.setdefault(dtype, self._compile(dtype))
        return compiled.ctypes

    def _compile(self, dtype: str) -> CFunc:
        # No Python runs in here, so no interrupt falls into a parallel region; nor is an address a constant, for
        # code that holds one cannot be kept on disk.
        do, unit = njit(inline="always")(self._text), np.dtype(dtype).type(1)
        read_share, read_call, head = reader(Share), self._read, SHARE.size

        def work(address):
            share = read_share(address)
            call = read_call(address + head)
            memory = (address + share.scratch + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
            memory += count_up(address, ARRIVED) * share.scratch_bytes
            piece = count_up(address, TAKEN)
            while piece < share.pieces:
                first = piece * share.tasks // share.pieces
                last = (piece + 1) * share.tasks // share.pieces
                do(first, last, memory, unit, call)
                count_up(address, FINISHED)
                piece = count_up(address, TAKEN)

        compiled = CFunc(work, ((types.int64,), types.void), {}, {"error_model": "numpy"})
        compiled._cache = Cache(f"{self.name}-{dtype}")  # type: ignore[attr-defined]
        compiled.compile()
        return compiled


def kernel(record: type, tensors: type) -> Callable[[Callable[..., None]], Kernel]:
    """Make a text a kernel that is told these records."""
    return lambda text: Kernel(record, tensors, text)
