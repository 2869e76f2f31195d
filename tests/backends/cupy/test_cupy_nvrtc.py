"""The kernels through NVIDIA's compiler, for every architecture: no device needed, only wheels.

Gates: no spills, registers below a ceiling, 128-bit accesses and no fused multiply-add in MSF, no warnings.
"""

from __future__ import annotations

import platform
import re
import sys

import pytest

from msf_pmsn_plugins.charges import CHARGES

if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    pytest.skip("NVIDIA's compiler comes with the dev group on Linux x86_64 only", allow_module_level=True)

from msf_pmsn_plugins.backends.cupy import geometry
from shim import nvrtc
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

pytestmark = pytest.mark.kernels

ARCHITECTURES, binaries, msf, pmsn = nvrtc.ARCHITECTURES, nvrtc.binaries, nvrtc.msf, nvrtc.pmsn

FILES = (nvrtc.FORWARD, nvrtc.BACKWARD)

# Of the 65536 registers of a multiprocessor. 128 leave two blocks of MSF and four of PMSN; eight lanes a thread with
# every option, and the kernels in double, take what they need without spills.
CEILING, HIGH_CEILING = 128, 255

WIDEST = {
    "CHARGE": "charge_plif",
    "RESET": "reset_soft",
    "LENGTHS": 1,
    "SURROGATE": "surrogate_gaussian",
    "DETACH": 0,
    "RATE_GRAD": 1,
    "GRAD_MEMBRANE": 1,
}


# Every number of the neuron in memory and learned, a delayed reset, slopes given: rare, so only spills count.
ALL_NUMBERS = {**WIDEST, "THRESHOLD_TENSOR": 1, "THRESHOLD_GRAD": 1, "RESET_GRAD": 1}
RARE = [ALL_NUMBERS, {**ALL_NUMBERS, "DELAY": 1, "DETACH": 1}, {"SLOPES": 1, "DETACH": 0}]


def allowed_stack(kernel, name):
    """No spills, but for the drive in double with bursts and more than 12 modes: a few numbers, once a step."""
    macros = dict(kernel.macros)
    rare = (
        macros.get("IO") == "IO_DOUBLE" and macros.get("BURST") != "burst_off" and macros.get("MODES", 0) > 12
    )
    return 64 if rare and name == "pmsn_drive" else 0


def gate(kernel, architecture, ceiling):
    """Raise unless all kernels in the module of ``kernel`` keep to their registers."""
    check_usage(kernel, binaries(kernel, architecture), architecture, ceiling)


def check_usage(kernel, found, architecture, ceiling):
    assert kernel.name in found
    for name, binary in found.items():
        where = f"{name} on {architecture}, {kernel.macros}"
        assert binary.local == 0, where
        assert binary.stack <= allowed_stack(kernel, name), where
        assert binary.registers <= ceiling, f"{binary.registers} registers: {where}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_settings(architecture):
    for name in ("msf_forward", "msf_backward"):
        gate(msf(name), architecture, 104)  # two blocks of 256 a processor, as with 96
        gate(msf(name, KEEP="KEEP_CODE"), architecture, 104)
        code = binaries(msf(name), architecture)[name].opcodes
        assert not any(op.startswith(("LDL", "STL")) for op in code)
    gate(pmsn("pmsn_forward"), architecture, 96)
    gate(pmsn("pmsn_gather"), architecture, CEILING)
    for file in FILES:
        gate(pmsn("pmsn_chunk", file=file, CHUNKED=1), architecture, CEILING)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
def test_more_modes_than_anybody_published(architecture):
    for name in ("pmsn_forward", "pmsn_gather"):
        gate(pmsn(name, 32), architecture, HIGH_CEILING)
        assert (
            binaries(pmsn(name, 70), architecture)[name].registers <= HIGH_CEILING
        )  # it compiles, and spills


@pytest.mark.slow
@pytest.mark.parametrize("io", ["FLOAT", "DOUBLE", "HALF", "BFLOAT16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_msf_everywhere(architecture, io):
    for name in ("msf_forward", "msf_backward"):
        for macros in ({}, {"KEEP": "KEEP_CODE"}, {"LEVELS": 300}, WIDEST, {**WIDEST, "RESET": "reset_hard"}):
            for vec in (None, 1):
                wide = "RATE_GRAD" in macros and io in ("HALF", "BFLOAT16")
                gate(msf(name, io, vec, **macros), architecture, 160 if wide else CEILING)
        for macros in RARE:
            gate(msf(name, io, None, **macros), architecture, HIGH_CEILING)


@pytest.mark.slow
@pytest.mark.parametrize("io", ["FLOAT", "DOUBLE", "HALF", "BFLOAT16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pmsn_everywhere(architecture, io):
    other = {"LENGTHS": 1, "GRAD_DRIVE": 1, "RESET": "reset_serial", "BURST": "burst_sawtooth"}
    for modes in range(17):
        ceiling = HIGH_CEILING if io == "DOUBLE" or modes > 12 else CEILING
        for macros in ({}, other) if modes in (1, 4, 5, 16) else ({},):
            gate(pmsn("pmsn_forward", modes, io, **macros), architecture, ceiling)
            gate(pmsn("pmsn_gather", modes, io, **macros), architecture, HIGH_CEILING if macros else ceiling)
    for modes in (1, 5, 8) if io == "DOUBLE" else (1, 5, 12, 16):
        for file in FILES:
            gate(pmsn("pmsn_chunk", modes, io, file, **other, CHUNKED=1), architecture, HIGH_CEILING)
    for macros in (
        {"RESET": "reset_fixed", "BURST": "burst_nearest"},
        {"RESET": "reset_cumulative", "GRAD_DRIVE": 1},
    ):
        for modes in (4, 16):
            gate(pmsn("pmsn_forward", modes, io, **macros), architecture, HIGH_CEILING)
            gate(pmsn("pmsn_gather", modes, io, **macros), architecture, HIGH_CEILING)


# With few lanes: what is read of a step, and so how many steps ahead (geometry.packs_of).
AHEAD = {
    "forward": ("msf_forward", 32, {}),
    "bytes kept": ("msf_backward", 16, {"KEEP": "KEEP_CODE"}),
    "membranes kept": ("msf_backward", 16, {}),
    "learned": ("msf_backward", 8, {"RATE_GRAD": 1}),
    "all": ("msf_backward", 4, ALL_NUMBERS),
}


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
@pytest.mark.parametrize("name", list(AHEAD))
def test_with_few_lanes_the_reads_of_many_steps_are_under_way(name, architecture):
    name, ahead, macros = AHEAD[name]
    kernel = msf(name, vec=1, **macros, AHEAD=ahead, THREADS=geometry.MSF_FEW_THREADS)
    gate(kernel, architecture, CEILING)
    opcodes = binaries(kernel, architecture)[name].opcodes
    order = "".join(op[0] for op in opcodes if op.startswith(("LDG", "STG")))
    assert "L" * ahead in order


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
@pytest.mark.parametrize("name", ["msf_forward", "msf_backward"])
def test_msf_moves_128_bits_at_a_time(name, architecture):
    binary = binaries(msf(name), architecture)[name]
    loads = [op for op in binary.opcodes if op.startswith("LDG")]
    stores = [op for op in binary.opcodes if op.startswith("STG")]
    assert stores
    assert all(".128" in op for op in stores)
    # One rate for each lane, before the first step.
    assert len([op for op in loads if ".128" not in op]) == 4
    # Several steps' loads are under way at once: four in a row before anything is stored.
    order = "".join(op[0] for op in binary.opcodes if op.startswith(("LDG.E.128", "STG")))
    assert "LLLL" in order
    scalar = binaries(msf(name, vec=1), architecture)[name]
    assert not any(".128" in op for op in scalar.opcodes if op.startswith(("LDG", "STG")))


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
def test_msf_has_no_fused_multiply_add(architecture):
    for name in ("msf_forward", "msf_backward"):
        for io in ("FLOAT", "DOUBLE", "HALF"):
            code = binaries(msf(name, io), architecture)[name].opcodes
            assert any(op.startswith(("FMUL", "DMUL", "HMUL")) for op in code)
            # Index arithmetic fuses integers (IMAD), which is exact.
            assert not any(op.startswith(("FFMA", "DFMA", "HFMA2.BF16", "HFMA2.FP16")) for op in code), io


@pytest.mark.parametrize("charge", list(CHARGES))
def test_no_charge_is_contracted(charge):
    # A division is one instruction of PTX; its machine code fuses inside and rounds as IEEE asks.
    for name in ("msf_forward", "msf_backward"):
        kernel = msf(name, CHARGE=f"charge_{charge}", SURROGATE="surrogate_atan")
        ptx = nvrtc.build(kernel.text, nvrtc.options("sm_90"))[1]
        assert not re.search(r"\bfma\.", ptx)
        assert not re.search(r"div\.(approx|full)", ptx)


def test_the_gate_for_contraction_can_close():
    kernel = msf("msf_forward")
    options = tuple(option for option in nvrtc.options("sm_90") if option != "--fmad=false")
    module, ptx = nvrtc.build(kernel.text, options)
    assert re.search(r"\bfma\.", ptx)
    assert any(op.startswith("FFMA") for op in nvrtc.usage(module)[kernel.name].opcodes)


def test_the_gate_for_spills_can_close():
    kernel = pmsn("pmsn_forward", 16)
    bounds = "__launch_bounds__(THREADS, 1)"
    assert bounds in kernel.text
    # Twelve blocks to a multiprocessor leave 40 registers a thread.
    squeezed = kernel.text.replace(bounds, "__launch_bounds__(THREADS, 12)")
    found = nvrtc.usage(nvrtc.build(squeezed, nvrtc.options("sm_90"))[0])
    with pytest.raises(AssertionError):
        check_usage(kernel, found, "sm_90", HIGH_CEILING)


def test_the_gates_compile_what_the_backend_launches(shim):
    p, q = msf_problem(MSFCase()), pmsn_problem(PMSNCase())
    msf_backward("cupy", MSFCase(), p, msf_forward("cupy", MSFCase(), p)[1])
    pmsn_backward("cupy", PMSNCase(), q, pmsn_forward("cupy", PMSNCase(), q)[1])
    for one in shim.launches:
        gated = (msf if "msf" in one.kernel.name else pmsn)(one.kernel.name)
        names = {name for name, _ in one.kernel.macros}
        assert gated.file == one.kernel.file
        # A macro that is missing would count as 0; those of backward stand in both.
        assert names <= {name for name, _ in gated.macros}
        if "backward" in gated.file:
            assert names == {name for name, _ in gated.macros}
