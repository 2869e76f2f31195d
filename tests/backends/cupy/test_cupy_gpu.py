"""The kernels on a device: what no check without one can show. Skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from covering import label
from msf_pmsn_plugins.backends.cupy import geometry
from msf_pmsn_plugins.backends.cupy.launch import load_cupy
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import (
    MSFCase,
    PMSNCase,
    check_msf,
    check_pmsn,
    cut_time,
    few_lanes,
    home,
    move,
    msf_backward,
    msf_forward,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)
from shim.crossed import MSF_CASES, PMSN_CASES, msf_case, msf_laid_out, pmsn_case, pmsn_laid_out
from tolerances import assert_close, assert_same


def reason() -> str:
    """Why these tests cannot run here, or nothing."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        load_cupy()
    except ImportError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(reason()), reason=reason() or "a device")]


CASES = [
    MSFCase(charge, reset, surrogate, lengths=i % 2 == 1, dtype=dtype, shape=(16, 4096), steps=16)
    for i, (charge, reset, surrogate, dtype) in enumerate(
        zip(
            list(CHARGES),
            ["hard", "soft", "none"] * 4,
            list(SURROGATES) * 3,
            [torch.float32, torch.float64, torch.float16, torch.bfloat16] * 3,
            strict=False,
        )
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.charge}-{case.reset_mode}-{case.dtype}")
def test_msf_has_the_bits_of_the_cpu(case):
    # Torch on CUDA divides by a scalar through its reciprocal, so the reference is torch on the CPU. Numbers on this
    # grid stay far from subnormal, which the device flushes.
    p = msf_problem(case)
    wide = {key: p[key].to(case.state_dtype) for key in ("x_seq", "gs_seq")}
    on_cpu = replace(case, dtype=case.state_dtype)
    s_ref, kept_ref, v_ref = msf_forward("torch", on_cpu, {**p, **wide})
    s, kept, v = forward = msf_forward("cupy", case, move(p, "cuda"))
    assert_same(s.cpu(), s_ref.to(case.dtype))
    assert_same(kept.cpu(), kept_ref)
    assert_same(v.cpu(), v_ref)
    grads = home(msf_backward("cupy", case, move(p, "cuda"), forward[1]))
    expected = msf_backward("torch", on_cpu, {**p, **wide}, kept_ref)
    exact = case.surrogate not in ("sigmoid", "gaussian")
    for grad, ref in zip(grads[:2], expected[:2], strict=True):
        if exact:
            assert_same(grad, ref.to(grad.dtype))
        else:
            assert_close(grad, ref.to(grad.dtype), "adjoint", case.state_dtype)


@pytest.mark.parametrize("modes", [0, 1, 4, 5, 16, 40])
@pytest.mark.parametrize("reset_mode", ["floor", "serial", "none", "cumulative"])
def test_pmsn_in_double_is_the_cpu(reset_mode, modes):
    case = PMSNCase(modes, reset_mode, dtype=torch.float64, lanes=(64, 32, 2), steps=32, lengths=True)
    p = pmsn_problem(case)
    forward = pmsn_forward("cupy", case, move(p, "cuda"))
    expected = pmsn_forward("torch", case, p)
    assert_same(forward[0].cpu(), expected[0])
    for one, two in zip(home(forward[1:]), expected[1:], strict=True):
        assert_close(one, two, "residual")
    grads = home(pmsn_backward("cupy", case, move(p, "cuda"), forward[1]))
    for one, two in zip(grads, pmsn_backward("torch", case, p, expected[1]), strict=True):
        assert_close(one, two, "pmsn_adjoint")


@pytest.mark.parametrize("case", MSF_CASES, ids=label)
def test_msf_where_two_axes_meet(monkeypatch, case):
    """Views, lengths, kept bytes, learned numbers, half precision, steps read ahead: as on the CPU."""
    msf = msf_case(case)
    if case["lanes"] == "ahead":
        few_lanes(monkeypatch)
    p = msf_problem(msf)
    check_msf(msf, msf_laid_out(case, p), msf_laid_out(case, move(p, "cuda")))


@pytest.mark.parametrize("case", PMSN_CASES, ids=label)
def test_pmsn_where_two_axes_meet(monkeypatch, case):
    """Views, lengths, bursts, fixed residuals, chunks, half precision: as on the CPU."""
    pmsn = pmsn_case(case)
    if case["path"] == "chunks":
        cut_time(monkeypatch)
    p = pmsn_problem(pmsn)
    check_pmsn(pmsn, pmsn_laid_out(case, p), pmsn_laid_out(case, move(p, "cuda")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunks_and_steps_ahead_by_the_rule(dtype):
    pmsn = PMSNCase(steps=800, lanes=(2, 3, 1), dtype=dtype, lengths=True)
    p = pmsn_problem(pmsn)
    given = move(p, "cuda")
    assert geometry.chunks_of(given["x_seq"], 4, False).count > 1
    check_pmsn(pmsn, p, given)
    msf = MSFCase(steps=800, shape=(2, 40), dtype=dtype, lengths=True)
    p = msf_problem(msf)
    check_msf(msf, p, move(p, "cuda"))


def test_gradients_have_the_same_bits_in_every_run():
    case = PMSNCase(lanes=(512, 64, 4), steps=16)
    p = move(pmsn_problem(case), "cuda")
    first = pmsn_backward("cupy", case, p, p["x_seq"])
    for _ in range(5):
        for one, two in zip(pmsn_backward("cupy", case, p, p["x_seq"]), first, strict=True):
            assert_same(one, two)


def test_a_stream_of_ones_own():
    neuron, x_seq = MSF(backend="cupy"), torch.randn(8, 64, 1024, device="cuda")
    expected = neuron(x_seq)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        late = x_seq * 1
        actual = neuron(late)[0]
    torch.cuda.current_stream().wait_stream(stream)
    assert_same(actual, expected)


def test_a_captured_graph():
    x_seq = torch.randn(8, 64, 256, device="cuda", requires_grad=True)
    for neuron in (MSF(backend="cupy"), PMSN(256, backend="cupy").cuda()):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.autograd.grad(neuron(x_seq)[0].sum(), x_seq)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            s_seq = neuron(x_seq)[0]
            (grad,) = torch.autograd.grad(s_seq.sum(), x_seq)
        with torch.no_grad():
            x_seq.normal_()
        graph.replay()
        expected = neuron(x_seq)[0]
        assert_same(s_seq, expected)
        assert_same(grad, torch.autograd.grad(expected.sum(), x_seq)[0])


def test_two_streams_at_once():
    neurons = [MSF(backend="cupy"), PMSN(256, backend="cupy").cuda()]
    inputs = [torch.randn(32, 64, 256, device="cuda", requires_grad=True) for _ in neurons]

    def train(neuron, x_seq):
        s_seq = neuron(x_seq)[0]
        return s_seq, *torch.autograd.grad(s_seq.sum(), x_seq)

    expected = [train(*pair) for pair in zip(neurons, inputs, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in neurons]
    actual = []
    for stream, neuron, x_seq in zip(streams, neurons, inputs, strict=True):
        with torch.cuda.stream(stream):
            actual.append(train(neuron, x_seq))
    torch.cuda.synchronize()
    for ours, theirs in zip(actual, expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            assert_same(one, two)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_under_torch_compile(half):
    net = torch.nn.Sequential(
        torch.nn.Linear(32, 64), _First(MSF(backend="cupy")), _First(PMSN(64, backend="cupy"))
    )
    net, x_seq = net.cuda(), torch.randn(8, 4, 32, device="cuda")

    def train(call):
        net.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            s_seq = call(x_seq)
        s_seq.float().sum().backward()
        return s_seq, net[0].weight.grad.clone()

    for one, two in zip(train(torch.compile(net, fullgraph=True)), train(net), strict=True):
        torch.testing.assert_close(one, two)


class _First(torch.nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x_seq):
        return self.neuron(x_seq)[0]


def test_no_call_waits_for_the_device():
    torch.cuda.synchronize()
    for neuron in (MSF(backend="cupy"), PMSN(64, backend="cupy").cuda()):
        x_seq = torch.randn(8, 32, 64, device="cuda", requires_grad=True)
        neuron(x_seq)[0].sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            neuron(x_seq)[0].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# Bytes an element of MSF in half precision: x, s, their gradients and one kept; in float32 the states before and after
# and their gradients, half of each an element with two steps.
MOST_BYTES = 2 + 2 + 2 + 2 + 1 + 4 * 4 / 2


def test_more_than_two_to_the_31_elements_there_and_back():
    lanes = 2**30 + 4
    torch.cuda.empty_cache()
    free, need = torch.cuda.mem_get_info()[0], 1.1 * MOST_BYTES * 2 * lanes
    if free < need:
        pytest.skip(f"needs {need / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} are free")
    x_seq = torch.zeros(2, 1, lanes, device="cuda", dtype=torch.float16)
    x_seq[1, 0, -1] = 2.0  # two spikes, in the window of the second threshold
    s_seq = MSF(backend="cupy")(x_seq.requires_grad_())[0]
    last = [1, 0, lanes - 1]
    assert s_seq.nonzero().tolist() == [last]
    gs_seq = torch.zeros_like(s_seq)
    gs_seq[1, 0, -1] = 1.0
    (grad,) = torch.autograd.grad(s_seq, x_seq, gs_seq)
    assert grad.nonzero().tolist() == [[0, 0, lanes - 1], last]  # through the decay


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_input_is_used():
    x_seq = torch.randn(4, 2, 8, device="cuda:1")
    with torch.cuda.device(0):
        s_seq = MSF(backend="cupy")(x_seq)[0]
        assert torch.cuda.current_device() == 0
    assert s_seq.device == x_seq.device
    assert_same(s_seq.cpu(), MSF(backend="torch")(x_seq.cpu())[0])
    with pytest.raises(ValueError, match="all tensors on one device"):
        MSF(backend="cupy")(x_seq, (torch.zeros(2, 8, device="cuda:0"),))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_data_parallel():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = PMSN(8, backend="cupy")

        def forward(self, x_seq):
            return self.neuron(x_seq)[0]

    net, x_seq = Net().cuda(), torch.randn(4, 6, 8, device="cuda")
    assert_same(torch.nn.DataParallel(net, dim=1)(x_seq), net(x_seq))


def test_memory_of_training():
    x_seq = torch.randn(16, 64, 4096, device="cuda", requires_grad=True)
    neuron = MSF(backend="cupy")
    torch.autograd.grad(neuron(x_seq)[0].sum(), x_seq)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    neuron(x_seq)[0].sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    # Counts and gradient of the input, one byte an element kept, small change.
    assert peak <= x_seq.numel() * (4 + 4 + 1) * 1.1 + 2**20


def test_a_fresh_process_finds_the_kernels_on_disk(tmp_path):
    script = (
        "import time, torch; from msf_pmsn_plugins.neurons import MSF\n"
        "x = torch.ones(2, 4, 8, device='cuda'); torch.cuda.synchronize(); t = time.time()\n"
        "MSF(backend='cupy')(x); torch.cuda.synchronize(); print(time.time() - t)"
    )
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert list(tmp_path.iterdir())
    assert times[1] < times[0]
