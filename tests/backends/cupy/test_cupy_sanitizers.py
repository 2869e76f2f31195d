"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and block by block.

ThreadSanitizer takes each CUDA thread for a thread and each barrier for what orders them. Blocks follow one another
there; that no block touches what another writes is checked by running each alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.cupy import geometry, launch
from shim import ShimDevice, library, memory, run_kernel
from shim.cases import MSFCase, PMSNCase, check_msf, check_pmsn, cut_time, few_lanes
from shim.replay import replay, summary, tensors

pytestmark = pytest.mark.kernels

CASES = {
    "msf": MSFCase(
        "plif", surrogate="atan", learned="lanes", lengths=True, grad_membrane=True, shape=(3, 400)
    ),
    "msf-scalar": MSFCase("lif", "soft", "triangle", keep="membrane", detach=False, shape=(3, 99)),
    "msf-ahead": MSFCase("plif", surrogate="atan", learned="one", delay=True, steps=9, shape=(3, 99)),
    "msf-bytes": MSFCase(keep="code", dtype=torch.float16, shape=(2, 1200)),
    "pmsn": PMSNCase(lanes=(9, 5, 3), lengths=True, steps=3),
    "pmsn-rows": PMSNCase(modes=2, lanes=(90, 3, 2), steps=2),
    "pmsn-groups": PMSNCase(modes=6, reset_mode="cumulative", lanes=(9, 3, 20), steps=3),
    "pmsn-chunks": PMSNCase(modes=5, lanes=(9, 3, 2), steps=11),
}


def record(case, monkeypatch) -> list:
    """The launches of a checked case: forward and backward."""
    device = ShimDevice()
    monkeypatch.setattr(launch, "device", device)
    monkeypatch.setattr(geometry, "FULL", 512)  # blocks of pmsn_gather take several values of l
    if case is CASES["pmsn-chunks"]:
        cut_time(monkeypatch, device)
    if case is CASES["msf-ahead"]:
        few_lanes(monkeypatch, device)
    with poisoned_empty():
        (check_msf if isinstance(case, MSFCase) else check_pmsn)(case)
    return device.launches


def of_interest(launches: list) -> list:
    """One launch of each kernel, setting and set of arguments that are given."""
    return list({(one.kernel, tuple(arg is None for arg in one.args)): one for one in launches}.values())


# Threads of msf.cu share nothing, so there is little for ThreadSanitizer to see.
@pytest.mark.parametrize(
    ("sanitizer", "name"),
    [
        *(("address", name) for name in CASES),
        *(pytest.param("thread", name, marks=pytest.mark.slow) for name in CASES if "msf" in name),
        *(("thread", name) for name in CASES if "pmsn" in name),
    ],
)
def test_nothing_to_report(name, sanitizer, monkeypatch):
    launches = of_interest(record(CASES[name], monkeypatch))
    assert len(launches) >= 2
    for one in launches:
        for order in (0, 2):
            report, after = replay(one, sanitizer, order=order)
            assert not report, report
            if order == 0:
                rerun(one)
                assert after == tensors(one)


def rerun(one) -> None:
    """Run a launch in this process once more, from the memory it found."""
    restore(one)
    handle = library(one.kernel.text)
    run_kernel(handle, one.kernel.name, one.blocks, one.threads, one.args)


def restore(one) -> None:
    for arg, before in zip(one.args, one.before, strict=True):
        if before:
            memory(arg)[:] = before


BARRIER = "    __syncthreads();\n    for (int n = threadIdx.y;"

# Each must be reported, so that silence above means something: case, what is reported, the right text, the wrong one.
RACE, OVERRUN, DIVERGENT = "data race", "heap-buffer-overflow", "not all threads reach"
MISTAKES = {
    "read beyond the end": ("msf-scalar", OVERRUN, "(first >= lanes) return;", "(first > lanes) return;"),
    "write beyond the end": ("pmsn", OVERRUN, "lane] = narrow(next.s)", "lane + 1] = narrow(next.s)"),
    "beyond shared memory": ("pmsn", "out of bounds", "given[n][threadIdx.y", "given[n + 1][threadIdx.y"),
    "overflow": ("msf", "integer overflow", "return t <", "return int(t + 2) * 2147483647 > 7 || t <"),
    "no barrier": ("pmsn", RACE, BARRIER, BARRIER.replace("__syncthreads();", "")),
    "no barrier in the tree": ("pmsn", RACE, "+ half];\n      __syncthreads();", "+ half];"),
    "no barrier before the next l": (
        "pmsn-rows",
        RACE,
        "= sum;\n    }\n    __syncthreads();",
        "= sum;\n    }",
    ),
    "chunk beyond the end": (
        "pmsn-chunks",
        OVERRUN,
        "left < span ? left : span",
        "left < span ? left + 1 : span",
    ),
    "divergent barrier": ("pmsn", DIVERGENT, BARRIER, BARRIER.replace("__sync", "if (threadIdx.y) __sync")),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_reported(name, monkeypatch):
    case, expected, right, wrong = MISTAKES[name]
    sanitizer = "thread" if expected == RACE else "address"
    launches = [one for one in of_interest(record(CASES[case], monkeypatch)) if right in one.kernel.text]
    assert launches
    found = set()
    for one in launches:
        found.add(summary(replay(one, sanitizer, one.kernel.text.replace(right, wrong))[0]))
    assert any(expected in report for report in found), found


@pytest.mark.parametrize("name", list(CASES))
def test_no_block_touches_what_another_writes(name, monkeypatch):
    launches = of_interest(record(CASES[name], monkeypatch))
    assert sum(one.blocks > 1 for one in launches) >= 1
    for one in launches:
        assert written_apart(one), one.kernel


def written_apart(one, text: str | None = None) -> bool:
    """Whether each block alone writes what it writes in the whole launch, and no byte that another writes."""
    handle = library(text or one.kernel.text)
    owned = [np.frombuffer(memory(arg), np.uint8) for arg in one.args if isinstance(arg, Tensor)]
    restore(one)
    before = [part.copy() for part in owned]
    run_kernel(handle, one.kernel.name, one.blocks, one.threads, one.args)
    whole = [part.copy() for part in owned]
    writers = [np.zeros(len(part), np.int64) for part in owned]
    for block in range(one.blocks):
        restore(one)
        run_kernel(handle, one.kernel.name, one.blocks, one.threads, one.args, only=block)
        for count, now, was, end in zip(writers, owned, before, whole, strict=True):
            changed = now != was
            if not np.array_equal(now[changed], end[changed]):
                return False
            count += changed
    return all(
        count.max(initial=0) <= 1 and np.array_equal(count > 0, end != was)
        for count, was, end in zip(writers, before, whole, strict=True)
    )


def test_blocks_that_share_a_place_are_seen(monkeypatch):
    one = next(one for one in record(CASES["pmsn-groups"], monkeypatch) if one.kernel.name == "pmsn_gather")
    right = "((row * GROUPS + group) * SUMS + n)"
    assert right in one.kernel.text
    assert not written_apart(one, one.kernel.text.replace(right, "(row * GROUPS * SUMS + n)"))
