"""Threads that share a call of compiled code: torch's own, or ours where those cannot be had.

After each of its operations an OpenMP runtime lets its threads spin for milliseconds, in the hope of more work. Other
threads would compete with them for the cores; on torch's they start at once. After a fork OpenMP's threads are gone
and its runtime does not know: then, and where torch has no GNU OpenMP interface, a pool of ours does it.

Numba's own layers are no choice: one kills a child forked after its first use, another aborts the process when two
threads enter it.

What the threads run is compiled (``kernels/kernel.py``): each takes the next piece of a job until none is left, so it
does not matter how many of them come. An interrupt waits until the job is done.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import torch

__all__ = ["Job", "run"]


class Job(Protocol):
    """Compiled code and the memory that it works on, which lives as long as the job does."""

    function: Any  # of ctypes: takes the address, returns nothing, lets other threads of Python run
    address: int

    def finished(self) -> bool:
        """Whether all pieces are done."""


class _Pool:
    """Daemon threads that wait for jobs; more are started when a call asks for more."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started: list[threading.Thread] = []

    @property
    def threads(self) -> int:
        return len(self._started)

    def run(self, job: Job, threads: int) -> None:
        """Do a job on ``threads - 1`` threads of ours and this one, and return, or raise, when all of it is done."""
        self._grow(threads - 1)
        done = threading.Event()

        def share() -> None:
            job.function(job.address)
            if job.finished():
                done.set()

        try:
            for _ in range(threads - 1):
                self._jobs.put(share)
        finally:
            _finish(job, done)

    def _grow(self, threads: int) -> None:
        with self._lock:
            while self.threads < threads:
                thread = threading.Thread(target=self._serve, name="msf-pmsn-plugins", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system grants no more
                    return
                self._started.append(thread)

    def _serve(self) -> None:
        while (share := self._jobs.get()) is not None:
            share()

    def close(self) -> None:
        """End the threads: a process that ends while they come back from compiled code may be aborted."""
        with self._lock:
            started, self._started = self._started, []
            for _ in started:
                self._jobs.put(None)
        for thread in started:
            thread.join()


def _finish(job: Job, done: threading.Event) -> None:
    """Do what is left, wait for what others do, and only then raise what interrupted: they write to our tensors."""
    try:
        job.function(job.address)
        if not job.finished():
            done.wait()
    except BaseException:
        _finish(job, done)
        raise


_pool = _Pool()


@functools.cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the OpenMP runtime that torch runs on, or None: (function, its argument, threads, flags)."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available() or _is_copy():
        return None
    try:
        # A symbol is looked up in the library and then in those that it was linked with.
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    found.restype = None
    return found


def _is_copy() -> bool:
    """Whether this process is the copy of another one that a fork made (or nobody can tell), by its flags in Linux.

    torch may have been loaded and used before the fork, long before anybody imported this module.
    """
    fork_without_exec = 0x40
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & fork_without_exec)
    except (OSError, ValueError, IndexError):
        return True


def _after_fork() -> None:
    """A child has none of its parent's threads, and maybe a lock that one of them held."""
    global _pool
    _pool = _Pool()
    _openmp.cache_clear()


atexit.register(lambda: _pool.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(job: Job, threads: int) -> None:
    """Do a job on at most ``threads`` threads."""
    if threads <= 1:
        job.function(job.address)
        return
    parallel = _openmp()
    if parallel is None:
        _pool.run(job, threads)
    else:
        parallel(job.function, job.address, threads, 0)
