"""Mistakes planted in the CUDA text, each of which must show; and the order of threads, which must not."""

from __future__ import annotations

import pytest
import torch

from shim.cases import (
    MSFCase,
    PMSNCase,
    check_msf,
    check_pmsn,
)

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_threads_does_not_matter(shim, order):
    shim.order = order
    check_msf(MSFCase(shape=(3, 1000)))
    check_pmsn(PMSNCase(lanes=(9, 5, 3)))
    check_pmsn(PMSNCase(modes=5, reset_mode="cumulative", lanes=(300, 2, 1), steps=3))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(back ? chunks - 1 - i : i)", "i"),
        ("back ? -pi : pi", "pi"),
        ("Gathered gathered{State<TAKEN>(p0, v, first)}", "Gathered gathered{State<TAKEN>()}"),
        ("gz && last ?", "gz && (last || true) ?"),
        ("own.steps != known", "known < 0"),
    ],
    ids=["direction", "conjugate", "sensitivity", "last gradient", "shorter chunk"],
)
def test_a_mistake_in_chunks_shows(shim, chunked, right, wrong):
    case = PMSNCase(lengths=True, dtype=F64, steps=11)
    planted = []

    def plant(text):
        planted.append(right in text)
        return text.replace(right, wrong)

    shim.edit = plant
    with pytest.raises(AssertionError):
        check_pmsn(case)
    assert any(planted)
    shim.edit = None
    check_pmsn(case)


BARRIER = "    __syncthreads();\n    for (int n = threadIdx.y;"
WIDE = PMSNCase(lanes=(40, 2, 200), steps=2)

# Each of these mistakes in a kernel must show in a check above.
MISTAKES = {
    "tie": (MSFCase(), "m >= threshold(j, theta, d)", "m > threshold(j, theta, d)"),
    "tie of the reset": (
        MSFCase(),
        "return m >= threshold(j, theta, 0);",
        "return m > threshold(j, theta, 0);",
    ),
    "bound": (MSFCase(shape=(3, 5)), "(first >= lanes) return;", "(first + 1 >= lanes) return;"),
    "stride": (MSFCase(), "t * lanes + first, gx)", "t * (lanes - 4) + first, gx)"),
    "padding": (MSFCase(lengths=True), "return t < steps[j];", "return t <= steps[j];"),
    "order of operations": (MSFCase("lif"), "v - (v - r) / k + x", "v + x - (v - r) / k"),
    "carry": (PMSNCase(), "next.r = next.v - k;", "next.r = next.v - next.s;"),
    "reduction": (PMSNCase(lanes=(8, 3, 2)), "y < blockDim.y; ++y", "y + 1 < blockDim.y; ++y"),
    "tree": (WIDE, "half = THREADS / 2", "half = THREADS / 4"),
    "first row": (PMSNCase(), "? real_t(0) : *place", "? *place : *place"),
    "barrier": (PMSNCase(), BARRIER, BARRIER.replace("__syncthreads();", "")),
    "divergent barrier": (PMSNCase(), BARRIER, BARRIER.replace("__sync", "if (threadIdx.y) __sync")),
    "barrier of the tree": (WIDE, "+ half];\n      __syncthreads();", "+ half];"),
    "uninitialised shared memory": (PMSNCase(), "n < SUMS; ++n) given", "n + 1 < SUMS; ++n) given"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_shows(shim, name):
    case, right, wrong = MISTAKES[name]
    planted = []

    def plant(text):
        planted.append(right in text)
        return text.replace(right, wrong)

    shim.edit = plant
    check = check_msf if isinstance(case, MSFCase) else check_pmsn
    with pytest.raises((AssertionError, RuntimeError)):
        for shim.order in (0, 1):
            check(case)
    assert any(planted)
    shim.edit = None
    check(case)
