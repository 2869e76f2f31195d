"""Threads of our own for kernels that release the GIL.

Numba's own layers are no choice: one kills a child forked after its first use, another aborts the process when two
threads enter it.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

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


def _after_fork() -> None:
    """A child has none of its parent's threads, and maybe a lock that one of them held."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(work: Work, count: int, threads: int) -> None:
    """Call ``work(first, last)`` for ranges that cover ``range(count)``, on at most ``threads`` threads."""
    threads = min(threads, count)
    if threads <= 1:
        work(0, count)
        return
    pool = _pool
    pool.grow(threads - 1)
    job = _Job(work, count, min(count, PIECES * threads))
    for _ in range(threads - 1):
        pool.jobs.put(job)
    job.help()
    job.done.wait()
    if job.error is not None:
        raise job.error
