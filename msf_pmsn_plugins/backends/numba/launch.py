"""One call of a kernel: its record in memory, cut into pieces for the threads."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from . import pool
from .kernels.calls import SHARE, Share
from .kernels.kernel import Kernel
from .kernels.memory import CACHE_LINE
from .memory import SMALL, Memory, ceil

__all__ = ["PIECES", "Prepared", "Work", "known", "launch", "remember"]

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


class Prepared:
    """A call on one thread of which all but some addresses is known: what a single step of a stream costs is mostly
    the making of its record.
    """

    def __init__(
        self, kernel: Kernel, record: Any, work: Work, memory: Memory, fields: Sequence[str]
    ) -> None:
        self._function = kernel.function(str(memory.dtype).removeprefix("torch."))
        self._template = SHARE.pack(0, 0, 0, 1, work.count, 0, work.scratch) + kernel.layout.pack(*record)
        self._end = ceil(len(self._template), CACHE_LINE) * CACHE_LINE
        self._size = self._end + ceil(work.scratch, CACHE_LINE) * CACHE_LINE + CACHE_LINE
        # Words of eight bytes.
        self._at = [SHARE.size + 8 * record._fields.index(field) for field in fields]
        self._alive = [held for held in memory.alive if isinstance(held, np.ndarray)]  # thresholds

    def __call__(self, *addresses: int) -> None:
        block = bytearray(self._size)
        at = ctypes.addressof(ctypes.c_char.from_buffer(block))
        shift = -at % CACHE_LINE
        block[shift : shift + len(self._template)] = self._template
        _WORD.pack_into(block, shift + 8 * _SCRATCH, at + shift + self._end)
        for place, address in zip(self._at, addresses, strict=True):
            _WORD.pack_into(block, shift + place, address)
        self._function(at + shift)


_WORD = struct.Struct("=q")
_SCRATCH = Share._fields.index("scratch")
_prepared: dict[Any, Prepared] = {}


def known(key: Any) -> Prepared | None:
    """The call that was remembered for ``key``: kernel, settings, shape and which tensors are given."""
    return _prepared.get(key)


def remember(key: Any, make: Callable[[], Prepared]) -> None:
    """Remember a call for the next with the same key."""
    if len(_prepared) > 500:  # inputs of ever new shapes
        _prepared.clear()
    _prepared[key] = make()


def launch(kernel: Kernel, record: Any, work: Work, memory: Memory) -> None:
    """Run a kernel to its end, on as many threads as torch has and the work is worth."""
    threads = 1 if work.lane_steps < SMALL else min(torch.get_num_threads(), work.count)
    pool.run(_Job(kernel, record, work, threads, memory), threads)
    memory.finish()
