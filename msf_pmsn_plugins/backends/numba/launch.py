"""One call of a kernel: its records in memory, cut into pieces for the threads."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch

from . import pool
from .kernels.calls import SHARE, Share
from .kernels.kernel import Kernel
from .kernels.memory import CACHE_LINE
from .memory import Tensors, ceil

__all__ = ["PIECES", "Prepared", "Work", "threads_for"]

SMALL = 1 << 16  # lanes times steps; below, a second thread costs more than it brings
PIECES = 4  # for each thread: one that was held up leaves the rest of its share to the others


class Work(NamedTuple):
    """What there is to do."""

    tasks: int  # blocks or tiles
    scratch: int  # bytes of a thread
    threads: int  # at most


def threads_for(lane_steps: int) -> int:
    """As many threads as torch has and the work is worth."""
    return 1 if lane_steps < SMALL else torch.get_num_threads()


class _Memory(NamedTuple):
    """Where a call of one thread lies."""

    buffer: Any
    address: int


def _new(size: int) -> _Memory:
    buffer = ctypes.create_string_buffer(size)
    return _Memory(buffer, ctypes.addressof(buffer))


SPARE = 1 << 17  # bytes of memory that is used again: making it would cost more than a single step
_spare: list[_Memory] = []


class Prepared:
    """All that a kernel is told but addresses: the same for calls of the same settings and layouts.

    Args:
        kernel, dtype: what runs.
        record: what it is told.
        work: how much there is.
        alive: the memory of addresses in the record.
    """

    def __init__(self, kernel: Kernel, dtype: torch.dtype, record: Any, work: Work, *alive: Any) -> None:
        self.function = kernel.function(str(dtype).removeprefix("torch."))
        self.threads = min(work.threads, work.tasks)
        self.pieces = min(work.tasks, PIECES * self.threads) if self.threads > 1 else 1
        self._tensors, self._alive = kernel.tensors, alive
        self._tensors_at = SHARE.size + kernel.record.size
        end = self._tensors_at + kernel.tensors.size
        scratch_bytes = ceil(work.scratch, CACHE_LINE) * CACHE_LINE
        share = Share(0, 0, 0, self.pieces, work.tasks, end, scratch_bytes)
        self._head = SHARE.pack(*share) + kernel.record.pack(*record)
        self._size = end + CACHE_LINE + self.threads * scratch_bytes

    def run(self, addresses: Any, tensors: Tensors | None) -> None:
        """Run the kernel to its end; ``tensors`` None: the caller holds all, and nothing is to be copied after."""
        if self.threads == 1:
            self._alone(addresses)
        else:
            pool.run(_Job(self, addresses, tensors), self.threads)
        if tensors is not None:
            tensors.finish()

    def _alone(self, addresses: Any) -> None:
        """The same on this thread."""
        try:  # lists are safe between threads
            memory = _spare.pop() if self._size <= SPARE else _new(self._size)
        except IndexError:
            memory = _new(SPARE)
        ctypes.memmove(memory.address, self._head, self._tensors_at)
        self._tensors.pack_into(memory.buffer, self._tensors_at, *addresses)
        self.function(memory.address)
        if self._size <= SPARE:
            _spare.append(memory)

    def fill(self, addresses: Any) -> Any:
        """A call in memory that nobody has filled with zeros."""
        memory = np.empty(self._size, np.uint8)
        memory[: self._tensors_at] = np.frombuffer(self._head, np.uint8)
        self._tensors.pack_into(memory.data, self._tensors_at, *addresses)
        return memory


class _Job:
    """A call for several threads, alive with all of its tensors until the last thread has let go of it."""

    def __init__(self, prepared: Prepared, addresses: Any, tensors: Tensors | None) -> None:
        self.function = prepared.function
        self._memory = prepared.fill(addresses)
        self.address = int(self._memory.ctypes.data)
        self._alive = prepared, tensors

    def finished(self) -> bool:
        share = Share(*SHARE.unpack_from(self._memory))
        return share.finished == share.pieces
