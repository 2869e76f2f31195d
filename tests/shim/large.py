"""Memory for more lanes than 32 bits can count, of which nobody touches any but the last."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from . import memory

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13


class Large:
    """The memory of a tensor whose axis of length ``grows`` is ``times`` as long; its end is that of the tensor."""

    def __init__(self, tensor: Tensor, grows: int, times: int) -> None:
        axis = tensor.shape.index(grows) if grows in tensor.shape else None
        outer = 1 if axis is None else math.prod(tensor.shape[:axis])
        times = 1 if axis is None else times
        size = tensor.numel() * tensor.element_size() * times
        # Pages that nobody touches take no memory.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        self.map = mmap.mmap(-1, max(1, size), flags=flags)
        whole = torch.frombuffer(self.map, dtype=torch.uint8)[:size]
        self.all = whole
        self.end = whole.view(outer, times, -1)[:, -1] if size else whole.view(1, -1)
        self.end.copy_(contents(tensor).view(self.end.shape))


def contents(tensor: Tensor) -> Tensor:
    """A copy of the bytes of a tensor."""
    return (
        torch.frombuffer(bytearray(memory(tensor).raw), dtype=torch.uint8)
        if tensor.numel()
        else torch.empty(0)
    )
