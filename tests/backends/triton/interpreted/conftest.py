"""Triton's interpreter in the place of a device. It is chosen when Triton is imported, so these files run in a process
of their own: ``test_triton_interpreter.py`` starts it, or ``TRITON_INTERPRET=1 pytest`` on this folder.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    from helpers import poisoned_empty
    from msf_pmsn_plugins import backends
    from msf_pmsn_plugins.backends.triton import config, launch

    convert = interpreter._convert_float

    def rounded(values, source, target, rounding):
        """Triton's interpreter cuts off a float32 on its way to bfloat16, devices round it."""
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()
        return convert(values, source, target, rounding)

    interpreter._convert_float = rounded
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def poisoned():
    """Memory that nobody wrote is full of NaN."""
    with poisoned_empty():
        yield


@pytest.fixture
def chosen(monkeypatch):
    """``backend="triton"`` on CPU tensors."""
    ours = replace(backends.BACKENDS["triton"], device="")
    monkeypatch.setattr(backends, "BACKENDS", {"triton": ours, "torch": backends.BACKENDS["torch"]})
    backends._choose.cache_clear()
    yield
    backends._choose.cache_clear()


@pytest.fixture
def launches(monkeypatch):
    """Every launch, each of whose tensors lies between two fences that nobody may touch."""
    seen = []

    def run(kernel, where, grid, warps, args, settings):
        seen.append((kernel.fn.__name__, grid, warps, args, settings))
        fenced = {}
        for arg in args:
            if torch.is_tensor(arg):
                fenced.setdefault(arg.data_ptr(), Fenced(arg))
        inside = [fenced[a.data_ptr()].within(a) if torch.is_tensor(a) else a for a in args]
        real(kernel, where, grid, warps, inside, settings)
        for fence in fenced.values():
            fence.give_back()

    real = launch.run
    monkeypatch.setattr(launch, "run", run)
    return seen


class Fenced:
    """A copy of the memory that a tensor reaches from its first element on, in the middle of a larger one."""

    FENCE = 4096

    def __init__(self, tensor):
        reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        # .data: autograd must not take the copies for changes
        whole = torch.as_strided(tensor.data, (reach if tensor.numel() else 0,), (1,))
        self.bytes = whole.view(torch.uint8)
        self.all = torch.full(
            (self.bytes.numel() + 2 * self.FENCE,), 0xFF, dtype=torch.uint8
        )  # NaN in every float
        self.all[self.FENCE : self.FENCE + self.bytes.numel()] = self.bytes

    def within(self, tensor):
        middle = self.all[self.FENCE : self.FENCE + self.bytes.numel()].view(tensor.dtype)
        return torch.as_strided(middle, tensor.shape, tensor.stride(), middle.storage_offset())

    def give_back(self):
        size = self.bytes.numel()
        assert (self.all[: self.FENCE] == 0xFF).all(), "written before a tensor"
        assert (self.all[self.FENCE + size :] == 0xFF).all(), "written behind a tensor"
        self.bytes.copy_(self.all[self.FENCE : self.FENCE + size])


@pytest.fixture
def chunked(monkeypatch, launches):
    """Every sequence of four steps and more is cut in time."""
    monkeypatch.setattr(config, "LEAST_STEPS", 2)
    monkeypatch.setattr(config, "LEAST_CHUNKS", 2)
    monkeypatch.setattr(launch, "INTERPRETED", config.Device(processors=132))
    yield
    assert {"pmsn_chunk", "pmsn_carry", "pmsn_soma"} <= {name for name, *_ in launches}
