"""Calls as one CUDA graph: what the device needs for them, without what the host does in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from clock import Call, wall_seconds
from cpu import Run

WARM_UP = 3  # calls before a capture: compilation, workspaces of libraries


class Rotating:
    """Calls a run with a fresh one of several copies of its input: more bytes than the device's cache holds."""

    def __init__(self, run: Run, cache: int) -> None:
        copies = max(1, min(16, math.ceil(2 * cache / (8 * run.x.numel()))))
        self.inputs = [run.x.detach().clone().requires_grad_() for _ in range(copies)]
        self.run, self.turn = run, 0

    def __call__(self, way: str) -> Any:
        self.turn = (self.turn + 1) % len(self.inputs)
        self.run.x = self.run.leaves[0] = self.inputs[self.turn]
        return getattr(self.run, way)()


def captured(call: Call, count: int, device: torch.device, pool: Any = None) -> Call:
    """``count`` calls as one: the replay of a CUDA graph. Without a device, for a rehearsal, a loop.

    Args:
        pool: memory that graphs share, ``torch.cuda.graph_pool_handle()``: they must not run at once.

    Raises:
        RuntimeError: a call that waits for the device, or whose replay gives something else than the call.
    """
    if device.type != "cuda":
        return lambda: [call() for _ in range(count)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            expected = call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        for _ in range(count):
            found = call()
    graph.replay()
    torch.cuda.synchronize(device)
    try:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    except AssertionError as error:
        raise RuntimeError(f"its graph gives other results ({str(error).splitlines()[0]})") from error
    return graph.replay


def seconds(call: Callable[[], Any], device: torch.device, busy: bool = False) -> float:
    """Of one call, on the device's own clock where it has one.

    Args:
        busy: the same call goes ahead, so that the device is at work while the host asks for the one that counts.
    """
    if device.type != "cuda":
        return wall_seconds(call)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    if busy:
        call()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
