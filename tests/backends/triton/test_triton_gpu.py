"""The Triton kernels on a device: what no check without one can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest
import torch

from msf_pmsn_plugins import backends
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import (
    MSFCase,
    PMSNCase,
    msf_backward,
    msf_forward,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
    soma_loop,
)
from tolerances import assert_close, assert_same


def reason() -> str:
    """Why these tests cannot run here, or nothing."""
    if not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    if not backends.BACKENDS["triton"].installed():
        return "no Triton"
    return backends.unusable("triton")


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(reason()), reason=reason() or "a device")]


def move(problem, device="cuda"):
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in problem.items()}


def back(tensors):
    return [tensor.cpu() for tensor in tensors]


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MSF_CASES = [
    MSFCase(
        *(charge, ["hard", "soft", "none"][i % 3], list(SURROGATES)[i % 5]),
        dtype=DTYPES[i % 4],
        lengths=i % 2 == 1,
        detach=i % 3 > 0,
        delay=i % 3 == 1,
        learned="lanes" if CHARGES[charge].rate_grad else "",
        threshold=["", "one", "lanes"][i % 3],
        shape=(16, 4096) if i % 2 else (5, 333),
    )
    for i, charge in enumerate(CHARGES)
]
MSF_CASES += [
    MSFCase("decay", "soft", retake=True, detach=False, shape=(16, 4096), lengths=True),
    MSFCase(keep="code", steps=100, shape=(16, 128)),  # few lanes, which read bytes and halves ahead
    MSFCase(keep="code", dtype=torch.float16, steps=100, shape=(5, 333), lengths=True),
]


@pytest.mark.parametrize(
    "case", MSF_CASES, ids=lambda case: f"{case.charge}-{case.reset_mode}-{case.dtype}-{case.keep}"
)
def test_msf_has_the_bits_of_the_cpu(case):
    # Torch on CUDA divides by a scalar through its reciprocal, so the reference is torch on the CPU.
    p = msf_problem(case)
    wide = {**p, **{key: p[key].to(case.state_dtype) for key in ("x_seq", "gs_seq")}}
    s, kept, v = msf_forward("torch", case, wide)
    grads = msf_backward("torch", case, wide, kept)
    ours = back(msf_forward("triton", case, move(p)))
    assert_same(ours[0], s.to(case.dtype))
    for one, two in zip(ours[1:], (kept, v), strict=True):
        assert_same(one, two)
    for one, two in zip(back(msf_backward("triton", case, move(p), kept.cuda())), grads, strict=True):
        assert_close(one, two.to(one.dtype), "adjoint")


PMSN_CASES = [
    PMSNCase(5, "floor", lanes=(16, 64, 2), lengths=True),
    PMSNCase(16, "serial", dtype=torch.float64, lanes=(4, 33, 3), burst="sawtooth", threshold=0.5),
    PMSNCase(4, "cumulative", lanes=(16, 64, 2), surrogate="gaussian", lengths=True, grad_membrane=True),
    PMSNCase(0, "none", lanes=(3, 1, 70)),
    PMSNCase(8, fixed=True, burst="nearest", lanes=(16, 64, 2)),
    PMSNCase(4, "floor", lanes=(4, 64, 1), steps=1024, lengths=True),  # in chunks
]


@pytest.mark.parametrize("case", PMSN_CASES, ids=lambda case: f"{case.reset_mode}-{case.modes}-{case.steps}")
def test_pmsn_is_near_the_cpu_in_double(case):
    p = pmsn_problem(case)
    double = {
        key: value
        if not torch.is_tensor(value) or value.dtype == torch.int64
        else value.to(torch.promote_types(value.dtype, torch.float64))
        for key, value in p.items()
    }
    _, y, _, r, z = back(pmsn_forward("triton", case, move(p)))
    _, y_ref, _, _, z_ref = pmsn_forward("torch", case, double)
    assert_close(y, y_ref, "drive", case.dtype)
    assert_close(z, z_ref, "drive", case.dtype)
    *_, residuals, _ = back(pmsn_forward("triton", case, move(p), residuals=True))
    assert_same(residuals[-1], r)
    assert_same(residuals, soma_loop(case, p, y)[2])
    grads = back(pmsn_backward("triton", case, move(p), y.cuda()))
    for one, two in zip(grads, pmsn_backward("torch", case, double, y.double()), strict=True):
        assert_close(one, two, "pmsn_adjoint", case.dtype)


@pytest.mark.parametrize(
    "case", [MSFCase(shape=(16, 4096)), PMSNCase(5, lanes=(16, 64, 2))], ids=["MSF", "PMSN"]
)
def test_every_run_has_equal_bits(case):
    runs = []
    for _ in range(3):
        if isinstance(case, MSFCase):
            p = move(msf_problem(case))
            forward = msf_forward("triton", case, p)
            runs.append([*forward, *msf_backward("triton", case, p, forward[1])])
        else:
            p = move(pmsn_problem(case))
            runs.append([*pmsn_forward("triton", case, p), *pmsn_backward("triton", case, p, p["x_seq"])])
    for run in runs[1:]:
        for one, two in zip(runs[0], run, strict=True):
            assert_same(one, two)


@pytest.mark.parametrize("make", [MSF, lambda **how: PMSN(64, **how)], ids=["MSF", "PMSN"])
def test_a_training_step_in_a_graph(make):
    """Captured after a first step with the same settings."""
    neuron = make(backend="triton").cuda()
    x_seq = torch.randn(8, 16, 64, device="cuda", requires_grad=True)

    def step():
        s_seq, _ = neuron(x_seq)
        return s_seq, torch.autograd.grad(s_seq.sum(), x_seq)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        made = step()
    with torch.no_grad():
        x_seq.copy_(torch.randn_like(x_seq))
    graph.replay()
    torch.cuda.synchronize()
    for one, two in zip(made, step(), strict=True):
        assert_same(one, two)
