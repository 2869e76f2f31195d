"""More lanes than 32 bits can count, in every kernel: the last block of a launch whose memory nobody else touches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shim import Launch, library, memory, promises, run_kernel
from shim.cases import (
    MSFCase,
    PMSNCase,
    cut_time,
    msf_backward,
    msf_forward,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)
from shim.large import Large, contents

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]

LANES = 2048  # of the small launch: whole blocks of every kernel
TIMES = 2**21 + 1  # the large one has as many lanes: just over 2**32
GROWS = ("lanes", "leads", "rows")  # the numbers that grow with them, and the distances between steps

CASES = {
    "MSF, 16 bytes": MSFCase(
        "plif", learned="lanes", dtype=torch.float16, shape=(LANES,), steps=2, lengths=True
    ),
    "MSF, bytes kept": MSFCase(keep="code", shape=(LANES,), steps=2),
    "PMSN": PMSNCase(1, lanes=(LANES, 1, 1), steps=3, lengths=True, grad_membrane=True),
    "PMSN, groups": PMSNCase(5, "cumulative", lanes=(LANES, 1, 1), steps=3, dtype=torch.bfloat16),
    "PMSN, chunks": PMSNCase(1, lanes=(LANES, 1, 1), steps=4, lengths=True),
}


def record(case, shim, monkeypatch) -> list[Launch]:
    """The launches of a call and its backward."""
    if isinstance(case, MSFCase):
        p = msf_problem(case)
        msf_backward("cupy", case, p, msf_forward("cupy", case, p)[1])
    else:
        if case is CASES["PMSN, chunks"]:
            cut_time(monkeypatch, shim)
        p = pmsn_problem(case)
        pmsn_backward("cupy", case, p, pmsn_forward("cupy", case, p)[1])
    return [one for one in shim.launches if one.kernel.name != "pmsn_parameters"]  # which knows no lanes


def restore(one: Launch) -> None:
    for arg, before in zip(one.args, one.before, strict=True):
        if before:
            memory(arg)[:] = before


def enlarged(one: Launch) -> tuple[list, dict[int, Large]]:
    """The arguments of the large launch, and its memory by the address of the small one's."""
    given = {
        p.name: arg
        for p, arg in zip(promises.signature(one.kernel.text, one.kernel.name), one.args, strict=True)
    }
    parts: dict[int, Large] = {}
    args = []
    for name, arg in given.items():
        if isinstance(arg, Tensor):
            grows = int(given["rows"]) if name == "partial" else LANES
            part = parts.setdefault(arg.data_ptr(), Large(arg, grows, TIMES))
            args.append(part.all)
        elif arg is not None and (name in GROWS or (name.endswith("_step") and arg == LANES)):
            args.append(type(arg)(int(arg) * TIMES))
        else:
            args.append(arg)
    return args, parts


@pytest.mark.parametrize("name", list(CASES))
def test_the_last_of_more_lanes_than_32_bits_count(shim, monkeypatch, name):
    for one in record(CASES[name], shim, monkeypatch):
        restore(one)
        args, parts = enlarged(one)
        handle = library(one.kernel.text)
        for given, blocks in ((one.args, one.blocks), (args, one.blocks * TIMES)):
            run_kernel(handle, one.kernel.name, blocks, one.threads, given, only=blocks - 1)
        for arg in one.args:
            if isinstance(arg, Tensor) and arg.numel():
                end = parts[arg.data_ptr()].end.reshape(-1)
                assert torch.equal(end, contents(arg)), (one.kernel, tuple(arg.shape))
