"""More lanes and elements than 32 bits count, in every kernel: the last program of a launch whose other memory nobody
touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from msf_pmsn_plugins.backends.triton import launch
from shim.cases import (
    MSFCase,
    PMSNCase,
    msf_backward,
    msf_forward,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)
from shim.large import Large, contents

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]

LANES = 2048  # of the small launch: whole programs of every kernel
# The large one has just over 2**30 lanes, whose numbers fit in 32 bits but not those of the last steps' elements; or
# just over 2**32.
TIMES = {"elements": 2**19 + 1, "lanes": 2**21 + 1}
GROWS = (
    "lanes",
    "sample",
    "positions",
    "columns",
)  # the numbers that grow with them, beside the distances between steps
NUMBERS = {
    "learned": "lanes",
    "threshold": "lanes",
    "amount": "lanes",
    "lengths": True,
    "grad_membrane": True,
}

CASES = {
    "MSF": MSFCase("plif", "soft", dtype=torch.float16, shape=(1, LANES), steps=4, **NUMBERS),
    "MSF, bytes kept": MSFCase(keep="code", shape=(LANES,), steps=4, delay=True),
    "MSF, slopes": MSFCase(slopes=True, shape=(LANES,), steps=4),
    "PMSN": PMSNCase(1, lanes=(1, 1, LANES), steps=4, lengths=True, grad_membrane=True),
    "PMSN, cumulative": PMSNCase(3, "cumulative", lanes=(1, 1, LANES), steps=4, dtype=torch.bfloat16),
    "PMSN, chunks": PMSNCase(1, lanes=(1, 1, LANES), steps=4, lengths=True, grad_membrane=True),
}


@dataclass
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    args: list[Any]  # tensors as they were before it
    settings: launch.Settings

    def named(self) -> list[tuple[str, Any]]:
        return list(zip(self.kernel.arg_names, self.args, strict=False))

    def run(self, args: list[Any], grid: tuple[int, ...], monkeypatch: Any) -> None:
        """The last program of ``grid`` alone."""
        last = [n - 1 for n in (*grid, 1, 1)[:3]]
        with monkeypatch.context() as patch:
            patch.setattr(interpreter_builder, "set_grid_idx", lambda *_: None)
            patch.setattr(interpreter_builder, "grid_idx", last)
            self.kernel[(1,) * len(grid)](*args, **self.settings)


def record(case: MSFCase | PMSNCase, monkeypatch: Any) -> list[Launch]:
    """The launches of a call and its backward."""
    seen = []

    def run(kernel: Any, where: Any, grid: Any, warps: int, args: Any, settings: launch.Settings) -> None:
        before: dict[int, Tensor] = {}
        kept = []
        for name, arg in zip(kernel.arg_names, args, strict=False):
            if torch.is_tensor(arg):  # the copies have no gaps
                kept.append(before.setdefault(arg.data_ptr(), arg.clone()))
            else:
                kept.append(LANES if arg and name.endswith("_step") else arg)
        seen.append(Launch(kernel, grid, kept, settings))
        real(kernel, where, grid, warps, args, settings)

    with monkeypatch.context() as patch:
        real = launch.run
        patch.setattr(launch, "run", run)
        if isinstance(case, MSFCase):
            p = msf_problem(case)
            msf_backward("triton", case, p, msf_forward("triton", case, p)[1])
        else:
            p = pmsn_problem(case)
            pmsn_backward("triton", case, p, pmsn_forward("triton", case, p)[1])
    return [one for one in seen if one.kernel.fn.__name__ != "pmsn_weights"]  # which adds over all of them


def enlarged(one: Launch, times: int) -> tuple[list[Any], dict[int, Large]]:
    """The arguments of the large launch, and its memory by the address of the small one's."""
    parts: dict[int, Large] = {}
    args = []
    for name, arg in one.named():
        if isinstance(arg, Tensor):
            part = parts.setdefault(arg.data_ptr(), Large(arg, LANES, times))
            args.append(part.all.view(arg.dtype))
        elif arg == LANES and (name in GROWS or name.endswith("_step")):
            args.append(arg * times)
        else:
            args.append(arg)
    return args, parts


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
@pytest.mark.parametrize("name", list(CASES))
def test_the_last_of_more_lanes_than_32_bits_count(monkeypatch, request, name, times):
    if "chunks" in name:
        request.getfixturevalue("chunked")
    for one in record(CASES[name], monkeypatch):
        args, parts = enlarged(one, times)
        one.run(one.args, one.grid, monkeypatch)
        one.run(args, (one.grid[0] * times, *one.grid[1:]), monkeypatch)
        for arg in one.args:
            if isinstance(arg, Tensor) and arg.numel():
                end = parts[arg.data_ptr()].end.reshape(-1)
                assert torch.equal(end, contents(arg)), (one.kernel.fn.__name__, tuple(arg.shape))
