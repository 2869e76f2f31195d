"""CuPy's side of a launch, through a stand-in, and what can go wrong on the way."""

from __future__ import annotations

import contextlib
import re
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import ROOT
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends.cupy import launch, msf
from msf_pmsn_plugins.backends.cupy.arguments import SLOPES
from msf_pmsn_plugins.backends.cupy.compile import Kernel, source, variants
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons.pmsn.step import BURSTS, RESET_MODES
from msf_pmsn_plugins.resets import RESETS
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters
from shim.cases import (
    MSFCase,
    PMSNCase,
    msf_backward,
    msf_forward,
    msf_problem,
    msf_settings,
    pmsn_forward,
    pmsn_problem,
)

IDLE = SimpleNamespace(check=lambda x: None, multiprocessors=lambda x: 0)  # a device that no launch reaches


def test_other_devices_and_dtypes_are_refused(monkeypatch):
    case, pmsn = MSFCase(), PMSNCase()
    p, q = msf_problem(case), pmsn_problem(pmsn)
    with pytest.raises(ValueError, match=r"runs on CUDA tensors, this input is on cpu.*backend='auto'"):
        msf_forward("cupy", case, p)
    monkeypatch.setattr(launch, "device", IDLE)
    with pytest.raises(ValueError, match="all tensors on one device: the input is on cpu, v on meta"):
        msf_forward("cupy", case, {**p, "v": p["v"].to("meta")})
    with pytest.raises(TypeError, match=r"v in torch.float32 for this input, got torch.float64"):
        msf_forward("cupy", case, {**p, "v": p["v"].double()})
    with pytest.raises(TypeError, match=r"no kernel for torch.float8_e4m3fn"):
        msf_forward("cupy", case, {**p, "x_seq": p["x_seq"].to(torch.float8_e4m3fn)})
    with pytest.raises(TypeError, match=r"z in torch.complex64 for this input, got torch.complex128"):
        pmsn_forward("cupy", pmsn, {**q, "z": q["z"].to(torch.complex128)})


def test_what_no_kernel_has_is_refused(monkeypatch):
    monkeypatch.setattr(launch, "device", IDLE)
    case, p = MSFCase(), msf_problem(MSFCase())
    for field, kind in (("charge", "charge"), ("reset_mode", "reset"), ("surrogate", "surrogate")):
        settings = replace(msf_settings(case, p, "membrane"), **{field: "cosine"})
        with pytest.raises(
            (ValueError, KeyError), match=rf"no {kind} 'cosine'; known: \w+, .*backend='torch'"
        ):
            msf.msf_backward(
                *(MSFGrads(p["gs_seq"], None, None), p["x_seq"], p["x_seq"], p["v"]),
                *(MSFParameters(), None, None, settings),
            )
    with pytest.raises(ValueError, match="needs reset_mode 'floor', got 'serial'"):
        pmsn_forward("cupy", PMSNCase(reset_mode="serial", fixed=True), pmsn_problem(PMSNCase()))
    with pytest.raises(ValueError, match="charge 'lif' has no gradient to its rate"):
        case = MSFCase("lif", learned="one")
        msf_backward("cupy", case, msf_problem(case), p["x_seq"])
    eight = pmsn_problem(PMSNCase())
    eight["x_seq"] = eight["x_seq"].to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"no kernel for torch.float8_e4m3fn: convert .* torch.bfloat16"):
        pmsn_forward("cupy", PMSNCase(), eight)


def test_missing_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ImportError, match=r"torch brings CUDA 12: pip install .msf-pmsn-plugins\[cupy12\]. "):
        launch.load_cupy()


@pytest.mark.parametrize(
    ("cuda", "hip", "advice"),
    [
        ("12.8", None, r"brings CUDA 12: pip install .msf-pmsn-plugins\[cupy12\]. .*, or set"),
        ("13.0", None, r"brings CUDA 13: pip install .msf-pmsn-plugins\[cupy13\]. .*, or set"),
        (
            "11.8",
            None,
            "brings CUDA 11, and the extras are for CUDA 12 or 13: install a torch for one of them",
        ),
        (None, None, "this torch is built without CUDA: install one for CUDA 12 or 13"),
        (None, "6.4", "this torch is built for ROCm: install one for CUDA 12 or 13"),
    ],
)
def test_advice_names_an_extra_that_there_is(monkeypatch, chosen_on_cpu, cuda, hip, advice):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(ImportError, match=advice):
        launch.load_cupy()
    backends.BACKENDS["cupy"] = replace(backends.BACKENDS["cupy"], needs="no_such_module")
    refusal = (ValueError, "NVIDIA's devices, this torch is built for ROCm") if hip else (ImportError, advice)
    with pytest.raises(refusal[0], match=refusal[1]):
        backends.resolve("cupy", torch.ones(1), "msf", ())


def test_there_is_an_extra_for_each_cuda_that_is_named():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for major in backends.CUDA_EXTRAS:
        assert extras[f"cupy{major}"][0].startswith(f"cupy-cuda{major}x")
    assert sum(name.startswith("cupy") for name in extras) == len(backends.CUDA_EXTRAS)


def test_auto_says_once_that_cupy_cannot_be_imported(monkeypatch, chosen_on_cpu):
    monkeypatch.setitem(sys.modules, "cupy", None)
    asked = ("auto", torch.ones(1), "msf", ())
    with pytest.warns(
        RuntimeWarning, match=r"'cupy' is installed but not used: .*cannot import CuPy"
    ) as caught:
        assert [backends.resolve(*asked), backends.resolve(*asked)] == ["torch"] * 2
    assert len(caught) == 1


class FakeCupy:
    """CuPy as far as the backend uses it; keeps what it is told."""

    def __init__(self, error: str = "", version: int = 13000):
        self.calls, self.compiled, self.error = [], [], error
        self.current = []
        self.cuda = SimpleNamespace(
            get_local_runtime_version=lambda: version, Device=lambda index: self._within(("device", index))
        )

    @contextlib.contextmanager
    def _within(self, what):
        self.current.append(what)
        yield
        self.current.pop()

    def RawModule(self, code, options):
        def get_function(name):
            self.compiled.append((list(self.current), code, options))
            if self.error:
                raise RuntimeError(self.error)

            def function(grid, block, args, stream):
                self.calls.append((name, grid, block, args, stream.ptr, list(self.current)))

            return SimpleNamespace(kernel=function)

        return SimpleNamespace(get_function=get_function)


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


def kernel(**macros):
    return Kernel("msf_forward.cu", "msf_forward", tuple({"IO": "IO_FLOAT", "VEC": 4, **macros}.items()))


def where(index):
    return SimpleNamespace(device=SimpleNamespace(index=index))


def test_launch_through_cupy(monkeypatch, cuda):
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device, x = launch.CudaDevice(), torch.ones(3)
    for index in (1, 1, 0):
        device.launch(kernel(), where(index), 7, (256, 1), [x, None, np.int64(5)])
    args = (x.data_ptr(), 0, 5)
    assert cupy.calls[0] == ("msf_forward", (7,), (256, 1), args, 0xBEEF + 1, [("device", 1)])
    # Once for each device, with that device current.
    assert [within for within, *_ in cupy.compiled] == [[("device", 1)], [("device", 0)]]
    _, code, options = cupy.compiled[0]
    assert options == ("--std=c++17", "--fmad=false")
    assert code.startswith('#define IO IO_FLOAT\n#define VEC 4\n#line 1 "msf_forward.cu"\n')
    assert cuda == []


def test_the_multiprocessors_are_those_of_the_inputs_device(monkeypatch):
    found = {0: 132, 1: 46}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=found[getattr(device, "index", device)]),
    )
    for index, count in found.items():
        x = SimpleNamespace(device=torch.device("cuda", index))
        assert launch.CudaDevice().multiprocessors(x) == count


def test_other_settings_are_another_kernel(monkeypatch, cuda):
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    device = launch.CudaDevice()
    for levels in (1, 2, 1, 2):
        device.launch(kernel(LEVELS=levels), where(0), 1, (1, 1), [])
    assert [code.count("LEVELS 2\n") for _, code, _ in cupy.compiled] == [0, 1]


@pytest.mark.parametrize(
    ("error", "version", "advice"),
    [
        ("undefined symbol", 12090, r"CuPy is built for CUDA 12, this torch brings CUDA 13: .*cupy13"),
        ('could not open source file "cuda_fp16.h"', 13000, r"headers of CUDA are missing: pip install"),
        ("error: expected a ;", 13000, r"please report it.*backend='torch'"),
    ],
)
def test_failures_to_compile_say_what_to_do(monkeypatch, cuda, error, version, advice):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(error, version))
    with pytest.raises(RuntimeError, match=advice) as caught:
        launch.CudaDevice().launch(kernel(), where(0), 1, (1, 1), [])
    for part in (error, "--fmad=false", "VEC=4", "msf_forward of msf_forward.cu"):
        assert part in str(caught.value)


FILES = ["msf_forward.cu", "msf_backward.cu", "pmsn_forward.cu", "pmsn_backward.cu", "probe.cu"]


@pytest.mark.parametrize("file", FILES)
def test_the_source_holds_all_its_parts(file):
    text = source(file)
    assert '#include "' not in text
    assert '#line 1 "common.cuh"' in text
    # A compiler's complaint names the line of the file.
    original = (resources.files("msf_pmsn_plugins.backends.cupy") / file).read_text().splitlines()
    for number, line in re.findall(rf'#line (\d+) "{file}"\n(?!#line)(.*)', text):
        assert original[int(number) - 1] == line


def test_a_charge_a_reset_and_a_surrogate_are_found_by_name():
    assert set(variants("charges.cuh", "charge")) == set(CHARGES)
    assert set(variants("msf.cuh", "reset")) == set(RESETS)
    assert set(variants("soma.cuh", "reset")) == {*RESET_MODES, "fixed"}
    assert set(variants("soma.cuh", "burst")) == {burst or "off" for burst in BURSTS.values()}
    assert set(variants("surrogate.cuh", "surrogate")) == set(SURROGATES) == set(SLOPES)
    # Each in one place.
    for file in FILES:
        for kind in ("charge", "reset", "burst", "surrogate"):
            assert len(set(variants(file, kind))) == len(variants(file, kind))


@pytest.mark.parametrize("file", FILES)
def test_no_number_is_said_twice(file):
    """Sizes of blocks and the like come from the host as macros."""
    assert not re.search(r"#define (THREADS|LEVELS|MODES|GROUPS|VEC)\b", source(file))
