"""The way from a neuron to a launch: whole neurons on a CPU device (see ``shim``), geometry, errors, CuPy's side."""

from __future__ import annotations

import contextlib
import re
import sys
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import poisoned_empty
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends import cupy_backend
from msf_pmsn_plugins.neurons import MSF, PMSN
from shim import ShimDevice, launch, library
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
from tolerances import assert_close, assert_same


@pytest.fixture
def shim(monkeypatch):
    """backend="cupy" on CPU tensors."""
    device = ShimDevice()
    monkeypatch.setattr(launch, "device", device)
    monkeypatch.delitem(backends.NEEDS, "cupy")
    return device


def train(neuron, x_seq, **how):
    """Outputs, last state, membranes and all gradients of one pass."""
    neuron.zero_grad()
    x_seq = x_seq.detach().clone().requires_grad_()
    s_seq, state, m_seq = neuron.sequence(x_seq, **how)
    weight = torch.linspace(-1, 1, s_seq.numel(), dtype=s_seq.dtype).reshape(s_seq.shape)
    loss = (s_seq * weight).sum() + sum((part.abs() ** 2).sum() for part in state if part.requires_grad)
    loss = loss if m_seq is None else loss + m_seq.tanh().mul(weight).sum()
    loss.backward()
    return [s_seq, *state, m_seq, x_seq.grad], {name: p.grad for name, p in neuron.named_parameters()}


MSFS = {
    "published": {"D": 4},
    "learned": {"D": 2, "charge": "plif", "w": 0.3, "surrogate": "atan", "detach_reset": False},
    "soft": {"D": 1, "reset_mode": "soft", "charge": "lif", "tau": 2.0, "surrogate": "triangle"},
}


@pytest.mark.parametrize(
    "how", [{}, {"membrane": True}, {"lengths": [0, 5, 3]}], ids=["plain", "m", "lengths"]
)
@pytest.mark.parametrize("name", list(MSFS))
def test_msf_is_the_torch_backend_to_the_bit(shim, name, how):
    torch.manual_seed(0)
    x_seq = torch.randn(5, 3, 8)
    with poisoned_empty():
        ours, gradients = train(MSF(**MSFS[name], backend="cupy"), x_seq, **how)
    theirs, expected = train(MSF(**MSFS[name], backend="torch"), x_seq, **how)
    assert [launch.kernel.name for launch in shim.launches] == ["msf_forward", "msf_backward"]
    for one, two in zip(ours, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert_same(one, two)
    for key in expected:
        assert_same(gradients[key], expected[key])


@pytest.mark.parametrize(
    "how", [{}, {"membrane": True}, {"lengths": [0, 5, 3]}], ids=["plain", "m", "lengths"]
)
@pytest.mark.parametrize("settings", [{}, {"compartments": 8}], ids=["five", "eight"])
def test_pmsn_is_near_the_torch_backend(shim, settings, how):
    torch.manual_seed(0)
    x_seq = torch.randn(5, 3, 6, 2) * 8
    ours, theirs = PMSN(6, **settings, backend="cupy"), PMSN(6, **settings, backend="torch")
    theirs.load_state_dict(ours.state_dict())
    with poisoned_empty():
        actual, gradients = train(ours, x_seq, **how)
    expected, expected_gradients = train(theirs, x_seq, **how)
    assert_same(actual[0], expected[0])
    for one, two in zip(actual, expected, strict=True):
        if one is not None:
            assert_close(one, two, "residual")
    for key in gradients:
        assert_close(gradients[key], expected_gradients[key], "pmsn_gradient")
    names = [launch.kernel.name for launch in shim.launches]
    first = [] if len(names) == 4 else ["pmsn_drive"]
    assert names == ["pmsn_forward", *first, "pmsn_gather", "pmsn_adjoint", "pmsn_parameters"]


def test_half_precision_input(shim):
    x_seq = torch.randn(4, 2, 8, dtype=torch.bfloat16)
    assert_same(train(MSF(backend="cupy"), x_seq)[0][0], train(MSF(backend="torch"), x_seq)[0][0])


def test_single_steps_are_the_sequence(shim):
    neuron, x_seq = MSF(backend="cupy"), torch.randn(5, 2, 3)
    whole, (v,) = neuron(x_seq)
    state, parts = None, []
    for x in x_seq:
        s, state = neuron(x.unsqueeze(0), state)
        parts.append(s)
    assert_same(torch.cat(parts), whole)
    assert_same(state[0], v)


def test_under_torch_compile(shim):
    neuron, x_seq = MSF(backend="cupy"), torch.randn(4, 2, 8, requires_grad=True)
    compiled = torch.compile(lambda x: neuron(x)[0], backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(neuron(x_seq)[0].sum(), x_seq)
    s_seq = compiled(x_seq)
    assert_same(s_seq, neuron(x_seq)[0])
    assert_same(torch.autograd.grad(s_seq.sum(), x_seq)[0], expected)


def test_spikingjelly_node(shim):
    pytest.importorskip("spikingjelly")
    from msf_pmsn_plugins.spikingjelly import MSFNode

    x_seq, grads = torch.randn(4, 2, 8), []
    for backend in ("cupy", "torch"):
        x = x_seq.clone().requires_grad_()
        MSFNode(step_mode="m", backend=backend)(x).square().sum().backward()
        grads.append(x.grad)
    assert_same(*grads)
    assert len(shim.launches) == 2


@pytest.mark.parametrize("shape", [(0, 3, 8), (4, 0, 8), (4, 3, 0)])
def test_nothing_to_do_launches_nothing(shim, shape):
    x_seq = torch.randn(shape, requires_grad=True)
    v = torch.randn(shape[1:])
    s_seq, (v_last,) = MSF(backend="cupy")(x_seq, (v,))
    assert s_seq.shape == shape
    assert_same(v_last, v)
    (s_seq.sum() + v_last.sum()).backward()
    assert x_seq.grad.shape == shape
    p = pmsn_problem(PMSNCase(steps=shape[0], lanes=(shape[1], 3, shape[2])))
    assert_same(pmsn_forward("cupy", PMSNCase(), p)[2], p["r"])
    *_, gz0, ga, _gw, _gd = pmsn_backward("cupy", PMSNCase(), p, p["x_seq"])
    assert_same(gz0, p["gz"])
    assert not ga.any()
    assert not shim.launches


@pytest.mark.parametrize("missing", ["gs_seq", "gv", "gz", "gr", "gy_seq", "gm_seq"])
def test_a_missing_gradient_is_zero(shim, missing):
    case = MSFCase(shape=(2, 4), grad_membrane=missing == "gm_seq")
    p = msf_problem(case)
    kept = msf_forward("cupy", case, p)[1]
    if missing in p:
        zero = {**p, missing: torch.zeros_like(p[missing])}
        results = [msf_backward("cupy", case, q, kept)[:2] for q in ({**p, missing: None}, zero)]
        for one, two in zip(*results, strict=True):
            assert_same(one, two)
    for modes in (2, 6):
        case = PMSNCase(modes, "cumulative", grad_drive=missing == "gy_seq")
        p = pmsn_problem(case)
        if p.get(missing) is not None:
            zero = {**p, missing: torch.zeros_like(p[missing])}
            results = [pmsn_backward("cupy", case, q, p["x_seq"]) for q in ({**p, missing: None}, zero)]
            for one, two in zip(*results, strict=True):
                assert_same(one, two)


class Recorder:
    """A device that runs nothing; for tensors of any size on torch's "meta" device, which has no memory to look at."""

    def __init__(self):
        self.launches = []

    def check(self, x):
        assert x.is_meta

    def multiprocessors(self, x):
        return 132

    def launch(self, kernel, where, blocks, threads, args):
        self.launches.append((kernel.name, blocks, threads, args))


def meta(problem):
    return {key: value.to("meta") if torch.is_tensor(value) else value for key, value in problem.items()}


def test_nothing_asks_for_a_value_on_the_device(monkeypatch):
    # A meta tensor raises on .item(), so this also holds for CUDA: no call waits for the device.
    device = Recorder()
    monkeypatch.setattr(launch, "device", device)
    for case in (MSFCase(learned="lanes", lengths=True, grad_membrane=True), MSFCase("plif", keep="code")):
        p = meta(msf_problem(case))
        msf_backward("cupy", case, p, msf_forward("cupy", case, p)[1])
    for case in (PMSNCase(lengths=True), PMSNCase(modes=9, reset_mode="cumulative")):
        p = meta(pmsn_problem(case))
        pmsn_backward("cupy", case, p, pmsn_forward("cupy", case, p)[1])
    assert len(device.launches) == 4 + 4 + 5


def test_geometry_beyond_two_to_the_31(monkeypatch):
    device = Recorder()
    monkeypatch.setattr(launch, "device", device)
    lanes = 2**36 + 4
    case = MSFCase()
    p = meta(msf_problem(case))
    p["x_seq"] = p["gs_seq"] = torch.empty(3, 1, lanes, device="meta")
    p["v"] = p["gv"] = torch.empty(1, lanes, device="meta")
    msf_backward("cupy", case, p, msf_forward("cupy", case, p)[1])
    for _name, blocks, threads, args in device.launches:
        assert threads == (256, 1)
        assert 2**31 > blocks > 0
        assert blocks * 256 * 4 >= lanes > (blocks - 1) * 256 * 4
        assert np.int64(lanes) in [a for a in args if isinstance(a, np.int64)]
    device.launches.clear()
    leads = 2**28 + 1
    case = PMSNCase()
    p = meta(pmsn_problem(case))
    seq, r = torch.empty(2, leads, 3, 16, device="meta"), torch.empty(leads, 3, 16, device="meta")
    z = torch.empty(leads, 3, 16, 4, device="meta", dtype=torch.complex64)
    p.update(x_seq=seq, gs_seq=seq, gy_seq=None, r=r, gr=r, z=z, gz=z)
    pmsn_backward("cupy", case, p, pmsn_forward("cupy", case, p)[1])
    for name, blocks, _threads, args in device.launches:
        assert 2**31 > blocks > 0
        if name == "pmsn_gather":
            # Memory for sums stays small, whatever the number of lanes.
            assert args[13].numel() <= cupy_backend.FULL * 17


@pytest.mark.parametrize(
    ("leads", "columns"), [(1, 1), (1, 5), (7, 1), (1000, 1), (3, 100), (64, 512), (1, 10**6)]
)
def test_gather_geometry_covers_all_lanes(leads, columns):
    g = cupy_backend.gather_geometry(leads, columns)
    wide, high = g.threads
    assert wide * high == cupy_backend.PMSN_THREADS
    assert g.blocks % g.rows == 0
    assert g.blocks // g.rows * wide >= columns
    assert g.rows * high < leads + high
    assert min(columns, 32) <= wide


@pytest.mark.slow
def test_indices_beyond_two_to_the_31(shim):
    # Memory that nobody touches costs nothing: one block, the last, of 2**31 + 2048 lanes and two steps.
    lanes = 2**31 + 2048
    case = MSFCase("if", "none", levels=1, keep="none", shape=(1, 8), dtype=torch.float16)
    msf_forward("cupy", case, msf_problem(case))
    kernel = shim.launches[0].kernel
    x_seq, s_seq = (torch.empty(2, lanes, dtype=torch.float16) for _ in range(2))
    v, v_last = (torch.empty(lanes) for _ in range(2))
    block = 256 * 8
    x_seq[:, -block:] = torch.tensor([[1.0], [2.0]])
    v[-block:] = 0
    launch(
        library(kernel.source, kernel.options),
        kernel.name,
        lanes // block,
        (256, 1),
        [
            *(x_seq, v, None, None, s_seq, None, v_last),
            *map(np.int64, (2, lanes, lanes, lanes)),
            np.int32(0),
            *map(np.float32, (0, 1, 0, 0.5)),
            np.array(([2.5],), dtype=[("at", np.float32, (1,))]),
        ],
        only=lanes // block - 1,
    )
    assert (s_seq[:, -block:] == torch.tensor([[0.0], [1.0]])).all()
    assert (v_last[-block:] == 3).all()


# What can go wrong


def test_other_devices_and_dtypes_are_refused(monkeypatch):
    case, pmsn = MSFCase(), PMSNCase()
    p, q = msf_problem(case), pmsn_problem(pmsn)
    with pytest.raises(ValueError, match=r"runs on CUDA tensors, this input is on cpu.*backend='auto'"):
        msf_forward("cupy", case, p)
    monkeypatch.setattr(launch, "device", SimpleNamespace(check=lambda x: None))
    with pytest.raises(ValueError, match="all tensors on one device: the input is on cpu, v on meta"):
        msf_forward("cupy", case, {**p, "v": p["v"].to("meta")})
    with pytest.raises(TypeError, match=r"v in torch.float32 for this input, got torch.float64"):
        msf_forward("cupy", case, {**p, "v": p["v"].double()})
    with pytest.raises(TypeError, match=r"no kernel for torch.float8_e4m3fn"):
        msf_forward("cupy", case, {**p, "x_seq": p["x_seq"].to(torch.float8_e4m3fn)})
    with pytest.raises(TypeError, match=r"z in torch.complex64 for this input, got torch.complex128"):
        pmsn_forward("cupy", pmsn, {**q, "z": q["z"].to(torch.complex128)})


def test_what_no_kernel_has_is_refused(monkeypatch):
    monkeypatch.setattr(launch, "device", SimpleNamespace(check=lambda x: None))
    p, q = msf_problem(MSFCase()), pmsn_problem(PMSNCase(modes=17))
    settings = (None, None, 0.5, 1.0, "decay", [1.0], 0.0, "hard", True, "cosine", 1.0, "membrane")
    with pytest.raises(ValueError, match=r"no surrogate 'cosine'; known: rectangular"):
        cupy_backend.msf_bwd(p["gs_seq"], None, None, p["x_seq"], p["x_seq"], p["v"], *settings)
    with pytest.raises(ValueError, match="up to 16 modes, this PMSN has 17"):
        pmsn_forward("cupy", PMSNCase(), q)
    with pytest.raises(ValueError, match="needs reset_mode 'floor', got 'serial'"):
        pmsn_forward("cupy", PMSNCase(reset_mode="serial", fixed=True), pmsn_problem(PMSNCase()))
    with pytest.raises(ValueError, match="charge 'lif' has no learned rate"):
        case = MSFCase("lif", learned="one")
        msf_backward("cupy", case, msf_problem(case), p["x_seq"])
    with pytest.raises(
        TypeError, match=r"no kernel for torch.float16: convert the input to one of torch.float32, "
    ):
        cupy_backend._pmsn_macros(p["x_seq"].half(), 4, "floor", "", False, None, cupy_backend.Chunks(1, 6))


def test_missing_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(
        ImportError, match=r"torch brings CUDA 12: pip install \"msf-pmsn-plugins\[cupy12\]\""
    ):
        cupy_backend.load_cupy()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ImportError, match="This torch has no CUDA"):
        cupy_backend.load_cupy()


class FakeCupy:
    """CuPy as far as the backend uses it; keeps what it is told."""

    def __init__(self, error: str = "", version: int = 13000):
        self.calls, self.compiled, self.error = [], [], error
        self.current = []
        self.cuda = SimpleNamespace(
            get_local_runtime_version=lambda: version,
            Device=lambda index: self._within(("device", index)),
            ExternalStream=lambda pointer, index: self._within(("stream", pointer, index)),
        )

    @contextlib.contextmanager
    def _within(self, what):
        self.current.append(what)
        yield
        self.current.pop()

    def RawModule(self, code, options):
        def compile(log_stream):
            self.compiled.append((list(self.current), options))
            if self.error:
                log_stream.write("the log")
                raise RuntimeError(self.error)

        def get_function(name):
            return lambda grid, block, args: self.calls.append((name, grid, block, args, list(self.current)))

        return SimpleNamespace(compile=compile, get_function=get_function)


@pytest.fixture
def cuda(monkeypatch):
    """CUDA as far as the backend asks torch for it."""
    torch_device = []

    @contextlib.contextmanager
    def device(index):
        torch_device.append(index)
        yield
        torch_device.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0xBEEF + device.index)
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return torch_device


def kernel():
    return cupy_backend.Kernel("msf.cu", "msf_forward", (("IO", "IO_FLOAT"), ("VEC", 4)))


def where(index):
    return SimpleNamespace(device=SimpleNamespace(index=index))


def test_launch_through_cupy(monkeypatch, cuda):
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device, x = cupy_backend.CudaDevice(), torch.ones(3)
    for index in (1, 1, 0):
        device.launch(kernel(), where(index), 7, (256, 1), [x, None, np.int64(5)])
    name, grid, block, args, current = cupy.calls[0]
    assert (name, grid, block) == ("msf_forward", (7,), (256, 1))
    assert args == (x.data_ptr(), 0, 5)
    assert current == [("device", 1), ("stream", 0xBEEF + 1, 1)]
    # Once for each device, with that device current.
    assert [within[0] for within, _ in cupy.compiled] == [("device", 1), ("device", 0)]
    assert cupy.compiled[0][1] == ("--std=c++17", "--fmad=false", "-DIO=IO_FLOAT", "-DVEC=4")
    assert cuda == []


@pytest.mark.parametrize(
    ("error", "version", "advice"),
    [
        ("undefined symbol", 12090, r"CuPy is built for CUDA 12\. This torch brings CUDA 13: .*cupy13"),
        ('could not open source file "cuda_fp16.h"', 13000, r"headers of CUDA are missing: pip install"),
        ("error: expected a ;", 13000, r"please report it.*backend='torch'"),
    ],
)
def test_failures_to_compile_say_what_to_do(monkeypatch, cuda, error, version, advice):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(error, version))
    with pytest.raises(RuntimeError, match=advice) as caught:
        cupy_backend.CudaDevice().launch(kernel(), where(0), 1, (1, 1), [])
    for part in (error, "the log", "--fmad=false", "msf_forward of msf.cu"):
        assert part in str(caught.value)


def test_cupy_passes_thresholds_by_value():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert cupy.RawModule(code=cupy_backend.source("msf.cu"), options=kernel().options).code
    theta = cupy_backend._thresholds([1.0, 2.0], torch.zeros(1))
    # What CuPy asks of an array that it passes by value.
    assert theta.size == 1
    assert theta.itemsize == 8


def test_the_source_holds_all_its_parts():
    for file in ("msf.cu", "pmsn.cu"):
        text = cupy_backend.source(file)
        assert '#include "' not in text
        assert '#line 1 "surrogate.cuh"' in text
        # A compiler's complaint names the line of the file.
        original = (resources.files("msf_pmsn_plugins.backends") / file).read_text().splitlines()
        for number, line in re.findall(rf'#line (\d+) "{file}"\n(?!#line)(.*)', text):
            assert original[int(number) - 1] == line
