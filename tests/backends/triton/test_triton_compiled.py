"""What the backend launches, compiled for devices that are not here: no spills, nothing approximate, nothing fused."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="torch's wheels bring Triton on Linux only")

from triton_targets import AMD, ARCHITECTURES, NVIDIA, binary, recorded

from msf_pmsn_plugins.backends.triton import config
from msf_pmsn_plugins.charges import CHARGES
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
)

pytestmark = pytest.mark.kernels

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
CEILING, HIGH_CEILING = 128, 255  # registers of a thread: 128 leave 16 warps to a multiprocessor of 65536
SHARED = 64 * 1024  # bytes that every device grants a program; beyond 48 KiB Triton asks for them


def launched(monkeypatch, architecture, case, processors=1):
    """Everything that forward and backward of a case launch."""
    seen = recorded(monkeypatch, architecture, processors)
    if isinstance(case, MSFCase):
        p = msf_problem(case)
        kept = msf_forward("triton", case, p)[1]
        msf_backward("triton", case, p, kept)
    else:
        p = pmsn_problem(case)
        pmsn_forward("triton", case, p)
        pmsn_backward("triton", case, p, p["x_seq"])
    return seen


# Bytes that rare settings spill, and docs/kernels.md says so.
SPILLS = {
    ("pmsn_gather", 90): 8,  # eight modes, bursts, float32
    ("msf_forward", 120): 56,  # 300 thresholds in float64
}


def gate(one, architecture, ceiling=CEILING, spills=0):
    """Raise unless a launch keeps to its registers, and to what every device has."""
    found = binary(one, architecture)
    where = f"{one.name} on {architecture}: {found.registers} registers, {one.constants}"
    assert found.spills <= spills, where
    # AMD gives a thread 512 (gfx90a, gfx942), and takes more for the steps that are under way.
    assert found.registers <= (2 * ceiling if architecture in AMD else ceiling), where
    assert found.shared <= SHARED, where
    assert not found.count(r"\batom\b|\bred\.|_atomic_"), where


WIDE = (2, 1024)  # lanes of MSF that one processor takes in programs of full width
PUBLISHED = [
    MSFCase(levels=4, shape=WIDE),
    MSFCase(levels=4, keep="code", shape=WIDE),
    MSFCase(levels=4, dtype=F16, keep="code", shape=WIDE),
    PMSNCase(4, lanes=(8, 128, 1), grad_drive=False),
    PMSNCase(5, lanes=(8, 128, 1), grad_drive=False),
]


@pytest.mark.parametrize(
    ("architecture", "processors"),
    [*((architecture, 1) for architecture in ARCHITECTURES), (90, 132), ("gfx942", 132)],
)
def test_published_settings(monkeypatch, architecture, processors):
    for case in PUBLISHED:
        for one in launched(monkeypatch, architecture, case, processors):
            gate(one, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("steps", [4, 9], ids=["whole", "chunks"])
def test_residuals_of_every_step(monkeypatch, architecture, steps):
    monkeypatch.setattr(config, "LEAST_STEPS", 3)
    monkeypatch.setattr(config, "LEAST_CHUNKS", 3)
    seen = recorded(monkeypatch, architecture)
    case = PMSNCase(4, steps=steps, lanes=(8, 128, 1), lengths=True)
    pmsn_forward("triton", case, pmsn_problem(case), residuals=True)
    assert dict(seen[-1].signature)["r_seq"] == "*fp32"
    gate(seen[-1], architecture)


WIDEST = {"learned": "lanes", "threshold": "lanes", "lengths": True, "grad_membrane": True}
RICH_MSF = [
    MSFCase("plif", "soft", "gaussian", 4, amount="lanes", detach=False, **WIDEST),
    MSFCase("plif_decay_input", "soft", "sigmoid", 7, amount="one", delay=True, **WIDEST),
    MSFCase("decay", "hard", "atan", 2, slopes=True, detach=False, lengths=True),
    MSFCase("lif", "hard", levels=300, keep="code"),
    MSFCase(
        "lif", "soft", "atan", 7, amount="lanes", threshold="one", retake=True, detach=False, lengths=True
    ),
]
RICH_PMSN = [
    PMSNCase(reset_mode="serial", burst="sawtooth", surrogate="gaussian", lengths=True, grad_membrane=True),
    PMSNCase(reset_mode="cumulative", burst="nearest", surrogate="sigmoid", lengths=True),
    PMSNCase(fixed=True, burst="nearest", surrogate="atan", lengths=True, grad_membrane=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_msf_everywhere(monkeypatch, architecture, dtype):
    for case in RICH_MSF:
        for shape in (WIDE, (3, 5)):
            given = {**vars(case), "dtype": dtype, "shape": shape}
            for one in launched(monkeypatch, architecture, MSFCase(**given)):
                gate(one, architecture, HIGH_CEILING, SPILLS.get((one.name, architecture), 0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pmsn_everywhere(monkeypatch, architecture, dtype):
    monkeypatch.setattr(config, "LEAST_STEPS", 3)
    monkeypatch.setattr(config, "LEAST_CHUNKS", 3)
    for case in RICH_PMSN:
        for modes in (1, 4, 8, 16):
            for steps in (4, 9):  # whole and in chunks, where the residual is not fixed
                given = {**vars(case), "dtype": dtype, "modes": modes, "steps": steps}
                for one in launched(monkeypatch, architecture, PMSNCase(**given)):
                    gate(one, architecture, HIGH_CEILING, SPILLS.get((one.name, architecture), 0))


SHORT = [
    MSFCase("decay", "soft", "atan", 2, detach=False),
    MSFCase("decay", "soft", retake=True),
    MSFCase("lif", "hard", "sigmoid", 2, detach=False),
]
EXACT = [
    *SHORT,
    *(MSFCase(charge, "hard", levels=2, keep="code") for charge in CHARGES),
    *(MSFCase("lif", "none", surrogate, 2) for surrogate in SURROGATES if surrogate != "rectangular"),
]


@pytest.mark.parametrize(("architecture", "cases"), [(90, EXACT), (120, SHORT)], ids=["sm_90", "sm_120"])
def test_msf_is_rounded_as_written(monkeypatch, architecture, cases):
    for case in cases:
        for one in launched(monkeypatch, architecture, case):
            found = binary(one, architecture)
            assert not found.count(r"\bfma\.rn\.(f|bf)|\bmad\.rn\.f"), one.constants
            assert not found.count(r"div\.(approx|full)|\.approx|\.ftz"), one.constants
            # A division is one instruction of PTX; its machine code fuses inside and rounds as IEEE asks.
            assert bool(found.count(r"\bdiv\.rn\.f")) == divides(case, one), one.constants


@pytest.mark.parametrize(("architecture", "cases"), [("gfx942", EXACT), ("gfx90a", SHORT)], ids=AMD[::-1])
def test_msf_is_rounded_as_written_by_amd(monkeypatch, architecture, cases):
    for case in cases:
        for one in launched(monkeypatch, architecture, case):
            found = binary(one, architecture)
            divisions = found.count(r"v_div_fixup_f32")
            assert bool(divisions) == divides(case, one), one.constants
            # The only fused ones are the five of each division.
            assert found.count(r"v_(pk_)?(fma|fmac|mac|mad|fmaak|fmamk)_(legacy_)?f") == 5 * divisions, (
                one.constants
            )
            assert not found.count(r"v_exp_f|v_log_f|v_sqrt_f"), one.constants
            assert found.count(r"v_rcp_f") == divisions
    (forward, backward) = launched(monkeypatch, architecture, MSFCase("decay", dtype=F64))
    for one in (forward, backward):
        assert not binary(one, architecture).count(r"v_(fma|fmac|mac|mad)_f")


def divides(case, one):
    """Whether a kernel of MSF has a division to do."""
    backward = one.name == "msf_backward"
    by_tau = "lif" in case.charge and "product" not in case.charge and not case.charge.startswith("plif")
    by_slope = backward and case.surrogate != "rectangular"
    return by_tau or by_slope


@pytest.mark.parametrize("architecture", NVIDIA)
def test_the_soma_is_rounded_as_written(monkeypatch, architecture):
    """Of PMSN the recurrence alone is fused, and as its text says."""
    chunked = PMSNCase(4, burst="nearest", steps=9)
    monkeypatch.setattr(config, "LEAST_STEPS", 3)
    monkeypatch.setattr(config, "LEAST_CHUNKS", 3)
    for one in launched(monkeypatch, architecture, chunked):
        found = binary(one, architecture)
        assert not found.count(r"div\.(approx|full)|ex2|(add|sub|mul|fma|div)\S*\.ftz"), one.name
        if one.name == "pmsn_soma":
            assert not found.count(r"\bfma\.rn\.f")
            assert found.count(r"div\.rn\.f32")


def test_the_gate_for_contraction_can_close(monkeypatch):
    forward, _ = launched(monkeypatch, 90, MSFCase("decay"))
    assert "FFMA" in binary(forward, 90, fusion=True).code
    assert "FFMA" not in binary(forward, 90).code


def test_the_gate_for_spills_can_close(monkeypatch):
    monkeypatch.setattr(config, "GATHER", {4: 16, 8: 16})
    gather = launched(monkeypatch, 90, PMSNCase(16, lanes=(8, 128, 1), dtype=F64))[1]
    assert gather.name == "pmsn_gather"
    with pytest.raises(AssertionError, match="255 registers"):
        gate(gather, 90, HIGH_CEILING)


@pytest.mark.parametrize("architecture", NVIDIA)
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_msf_moves_128_bits_at_a_time(monkeypatch, architecture, dtype):
    for one in launched(monkeypatch, architecture, MSFCase(levels=4, dtype=dtype, shape=WIDE)):
        found = binary(one, architecture)
        counts = "s_seq" if one.name == "msf_forward" else "gx_seq"
        assert counts in dict(one.signature)
        assert found.count(r"st\.global\.v4\.b32"), one.name
        assert not found.count(r"st\.global\.(b32|b16)\s"), one.name


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_steps_are_read_ahead(monkeypatch, architecture):
    """From sm_80 on the loads of later steps go to shared memory while one step is computed."""
    for case in (*PUBLISHED[:2], PUBLISHED[-2]):
        for one in launched(monkeypatch, architecture, case):
            if one.name != "pmsn_weights":
                assert binary(one, architecture).count("cp.async") > 2, one.name


FEW = [
    MSFCase(levels=4, keep="code", shape=(16, 128)),
    MSFCase(levels=4, keep="code", dtype=F16, shape=(16, 128)),
    MSFCase(levels=4, dtype=F16, shape=(16, 128)),
    PMSNCase(4, lanes=(16, 128, 1), grad_drive=False),
]


@pytest.mark.parametrize("architecture", [80, 90])
def test_with_few_lanes_no_step_waits_for_what_it_reads(monkeypatch, architecture):
    """All loads are from shared memory there, those of bytes and halves too."""
    for case in FEW:
        for one in launched(monkeypatch, architecture, case, processors=132):
            found = binary(one, architecture)
            if one.name != "pmsn_weights":
                (loop,) = re.findall(r"Inner Loop Header(.*?)bra", found.text, re.DOTALL)
                assert "cp.async.wait_group" in loop, one.name
                assert "ld.global" not in loop, one.name
