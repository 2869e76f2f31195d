"""Threads for kernels that release the GIL: torch's own, or ours where those cannot be had.

After each of its operations an OpenMP runtime lets its threads spin for milliseconds, in the hope of more work. Other
threads would compete with them for the cores; on torch's they start at once. After a fork OpenMP's threads are gone
and its runtime does not know: then, and where torch has no GNU OpenMP interface, a pool of ours does it.

Numba's own layers are no choice: one kills a child forked after its first use, another aborts the process when two
threads enter it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["run"]

PIECES = 4  # ranges per thread: one that was held up leaves the rest of its share to the others

Work = Callable[[int, int], None]


class _Job:
    """Ranges of one call, taken by whoever comes; the caller always takes part, so no call waits for a free thread."""

    def __init__(self, work: Work, count: int, pieces: int) -> None:
        bounds = [i * count // pieces for i in range(pieces + 1)]
        self.work = work
        self.ranges = deque(itertools.pairwise(bounds))
        self.left = pieces
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def help(self) -> None:
        while True:
            try:
                first, last = self.ranges.popleft()
            except IndexError:
                return
            try:
                self.work(first, last)
            except BaseException as error:  # raised again by the caller
                self.error = error
            with self.lock:
                self.left -= 1
                if self.left == 0:
                    self.done.set()

    def task(self, _: Any) -> None:
        """``help`` for a caller that would swallow an interruption."""
        try:
            self.help()
        except BaseException as error:
            self.error = error


class _Pool:
    """Daemon threads that wait for jobs; more are started when a call asks for more."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.threads = 0
        self.lock = threading.Lock()

    def grow(self, threads: int) -> None:
        with self.lock:
            while self.threads < threads:
                threading.Thread(target=self._serve, name="msf-pmsn-plugins", daemon=True).start()
                self.threads += 1

    def _serve(self) -> None:
        while True:
            self.jobs.get().help()


_pool = _Pool()
_forked = False


def _after_fork() -> None:
    """A child has none of its parent's threads, and maybe a lock that one of them held."""
    global _pool, _forked
    _pool, _forked = _Pool(), True


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the OpenMP runtime that torch runs on, or None: (task, its argument, threads, flags)."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    try:
        # A symbol is looked up in the library and then in those that it was linked with.
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = (_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(work: Work, count: int, threads: int) -> None:
    """Call ``work(first, last)`` for ranges that cover ``range(count)``, on at most ``threads`` threads."""
    threads = min(threads, count)
    if threads <= 1:
        work(0, count)
        return
    job = _Job(work, count, min(count, PIECES * threads))
    parallel = None if _forked else _openmp()
    if parallel is not None:
        parallel(_Task(job.task), None, threads, 0)
    else:
        pool = _pool
        pool.grow(threads - 1)
        for _ in range(threads - 1):
            pool.jobs.put(job)
        job.help()
        job.done.wait()
    if job.error is not None:
        raise job.error
