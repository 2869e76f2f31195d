"""One call of a kernel: its record in memory, cut into pieces for the threads."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch

from . import pool
from .kernels.calls import SHARE, Share
from .kernels.kernel import Kernel
from .kernels.memory import CACHE_LINE
from .memory import Memory, ceil

__all__ = ["PIECES", "Work", "launch"]

SMALL = 1 << 16  # lanes times steps; below, a second thread costs more than it brings
PIECES = 4  # for each thread: one that was held up leaves the rest of its share to the others


class Work(NamedTuple):
    """What there is to do."""

    count: int  # blocks or tasks
    lane_steps: int
    scratch: int  # bytes of a thread


class _Job:
    """A call in memory, alive with all of its tensors until the last thread has let go of it."""

    def __init__(self, kernel: Kernel, record: Any, work: Work, threads: int, memory: Memory) -> None:
        self.function = kernel.function(str(memory.dtype).removeprefix("torch."))
        self._pieces = min(work.count, PIECES * threads) if threads > 1 else 1
        scratch_bytes = ceil(work.scratch, CACHE_LINE) * CACHE_LINE
        scratch = np.empty(threads * scratch_bytes + CACHE_LINE, np.uint8)
        start = ceil(scratch.ctypes.data, CACHE_LINE) * CACHE_LINE
        share = Share(0, 0, 0, self._pieces, work.count, start, scratch_bytes)
        self._record = ctypes.create_string_buffer(SHARE.size + kernel.layout.size)
        SHARE.pack_into(self._record, 0, *share)
        kernel.layout.pack_into(self._record, SHARE.size, *record)
        self.address = ctypes.addressof(self._record)
        self._alive = memory.alive, scratch

    def finished(self) -> bool:
        return Share(*SHARE.unpack_from(self._record)).finished == self._pieces


def launch(kernel: Kernel, record: Any, work: Work, memory: Memory) -> None:
    """Run a kernel to its end, on as many threads as torch has and the work is worth."""
    threads = 1 if work.lane_steps < SMALL else min(torch.get_num_threads(), work.count)
    pool.run(_Job(kernel, record, work, threads, memory), threads)
    memory.finish()
