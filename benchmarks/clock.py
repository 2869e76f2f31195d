"""Timing and memory, the same way for every rival."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch, and what asks it, on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wall_seconds(call: Call) -> float:
    """Of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleaved(
    calls: dict[str, Call],
    rounds: int,
    budget: float,
    seconds: Callable[[Call], float] = wall_seconds,
    warm_up: int = 1,
) -> dict[str, tuple[float, float]]:
    """Median and minimum seconds of each call, taken in turn so that all meet the same machine.

    ``rounds`` turns, or fewer once ``budget`` seconds are spent, but at least three.
    """
    for call in calls.values():
        for _ in range(warm_up):  # compilation, allocator, caches
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for turn in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
        if turn >= 2 and time.perf_counter() - start > budget:
            break
    return {name: (median(found), min(found)) for name, found in times.items()}


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that the forward keeps for the backward, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    return sum(seen.values())


def _resident(peak: bool) -> int:
    """Resident memory of this process now, or its peak since the last reset, in bytes (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def _peak(connection: Any, build: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    step = build(*args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's would be the parent's
    before = _resident(peak=False)
    step()
    connection.send(_resident(peak=True) - before)


def peak_bytes(build: Callable[..., Callable[[], Any]], *args: Any) -> int:
    """Growth of the resident memory to its peak in one call of ``build(*args)()``, in a process of its own.

    0 where the system does not tell (it is read from /proc).
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(theirs, build, args))
    process.start()
    theirs.close()
    try:
        grown = ours.recv()
    except EOFError:
        grown = 0
    process.join()
    return int(grown)
