"""Problems for the kernels and what must hold for their results, against the oracle and the plain torch backend."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from msf_pmsn_plugins.backends.cupy import geometry
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons.msf import msf_step
from msf_pmsn_plugins.neurons.pmsn import pmsn_step
from msf_pmsn_plugins.settings import MSFSettings, PMSNSettings
from msf_pmsn_plugins.surrogate import Surrogate
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights
from tolerances import assert_close, assert_same


def load(backend: str, neuron: str) -> Any:
    """The module of a backend for a neuron."""
    if backend == "cupy":
        return importlib.import_module(f"msf_pmsn_plugins.backends.cupy.{neuron}")
    from msf_pmsn_plugins.backends import torch_backend as old

    class Old:  # TEMPORARY: the torch backend's old signatures
        def msf_forward(self, x, v, par, lengths, s):
            return old.msf_fwd(x, v, lengths, par.rate, s.rate, s.input_scale, s.charge, s.thresholds, s.v_reset, s.reset_mode, s.width, s.keep)
        def msf_backward(self, g, x, kept, v0, par, lengths, s):
            return old.msf_bwd(g.s, g.m, g.v, x, kept, v0, lengths, par.rate, s.rate, s.input_scale, s.charge, s.thresholds, s.v_reset, s.reset_mode, s.detach_reset, s.surrogate, s.width, s.keep)
        def pmsn_forward(self, x, state, w, lengths, s):
            a, b, *c = old.pmsn_fwd(x, *state, *w, lengths, s.v_threshold, s.reset_mode, s.burst, s.fixed, s.keep_drive)
            return a, b, PMSNState(*c)
        def pmsn_backward(self, g, x, y, state, w, lengths, s, state_grad=True):
            gx, r, z, *c = old.pmsn_bwd(g.s, g.y, g.r, g.z, x, y, *state, *w, lengths, s.v_threshold, s.reset_mode, s.burst, s.fixed, s.surrogate, s.width, state_grad)
            return gx, PMSNState(r, z), PMSNWeights(*c)
    return Old()


EXPONENTIAL = ("sigmoid", "gaussian")  # whose last bit depends on the library's exp


@dataclass(frozen=True)
class MSFCase:
    charge: str = "decay"
    reset_mode: str = "hard"
    surrogate: str = "rectangular"
    levels: int = 3
    dtype: torch.dtype = torch.float32
    keep: str = "membrane"
    detach: bool = True
    learned: str = ""  # "" (a constant rate), "one" (a 0-d tensor), "lanes" (a tensor over the lanes)
    lengths: bool = False
    grad_membrane: bool = False
    v_reset: float = 0.0
    steps: int = 6
    shape: tuple[int, ...] = (3, 8)
    seed: int = 0

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def msf_problem(case: MSFCase) -> dict[str, Any]:
    """Tensors and constants of a case. Inputs lie on a grid of 1/16, so membranes meet thresholds."""
    g = torch.Generator().manual_seed(case.seed)
    state = case.state_dtype

    def grid(*shape: int) -> Tensor:
        return torch.randint(-24, 56, shape, generator=g) / 16

    rate = {"tau": 3.0, "w": 0.375, "decay": 0.25}.get(CHARGES[case.charge].rate, 0.0)
    rate_tensor = None
    if case.learned:
        shape = () if case.learned == "one" else (*[1] * (len(case.shape) - 1), case.shape[-1])
        rate_tensor = (rate + torch.rand(shape, generator=g) / 8).to(state)
    lengths = torch.randint(0, case.steps + 1, case.shape[:1], generator=g) if case.lengths else None
    return {
        "x_seq": grid(case.steps, *case.shape).to(case.dtype),
        "v": grid(*case.shape).to(state),
        "lengths": lengths,
        "rate_tensor": rate_tensor,
        "rate": rate,
        "input_scale": 0.5 if case.charge == "decay" else 1.0,
        "thresholds": [1.0 + d / max(2, case.levels // 3) for d in range(case.levels)],
        "v_reset": case.v_reset,
        "gs_seq": torch.randn(case.steps, *case.shape, generator=g).to(case.dtype),
        "gm_seq": torch.randn(case.steps, *case.shape, generator=g).to(state),
        "gv": torch.randn(case.shape, generator=g).to(state),
    }


def msf_settings(case: MSFCase, p: dict[str, Any], keep: str) -> MSFSettings:
    surrogate = Surrogate(case.surrogate)
    return MSFSettings(
        charge=case.charge,
        thresholds=tuple(p["thresholds"]),
        rate=p["rate"],
        input_scale=p["input_scale"],
        v_reset=p["v_reset"],
        reset_mode=case.reset_mode,
        detach_reset=case.detach,
        surrogate=surrogate.name,
        width=surrogate.width,
        keep=keep,
    )


def msf_forward(
    backend: str, case: MSFCase, p: dict[str, Any], keep: str | None = None
) -> tuple[Tensor, ...]:
    """Counts, what was kept, the last state."""
    settings = msf_settings(case, p, case.keep if keep is None else keep)
    parameters = MSFParameters(p["rate_tensor"])
    return load(backend, "msf").msf_forward(p["x_seq"], p["v"], parameters, p["lengths"], settings)


def msf_backward(backend: str, case: MSFCase, p: dict[str, Any], kept: Tensor) -> tuple[Tensor, ...]:
    """Gradients to x, v and the rate."""
    grads = MSFGrads(p["gs_seq"], p["gm_seq"] if case.grad_membrane else None, p["gv"])
    half = case.dtype in (torch.float16, torch.bfloat16)
    x_seq = p["x_seq"] if p["rate_tensor"] is not None or half else kept
    parameters, settings = MSFParameters(p["rate_tensor"]), msf_settings(case, p, case.keep)
    return load(backend, "msf").msf_backward(
        grads, x_seq, kept, p["v"], parameters, p["lengths"], settings
    )


def msf_oracle(case: MSFCase, p: dict[str, Any]) -> tuple[Tensor, ...]:
    """Counts, membranes, last state and gradients to x, v and the rate, from a loop of ``msf_step``."""
    x_seq = p["x_seq"].to(case.state_dtype).requires_grad_()
    v0 = p["v"].clone().requires_grad_()
    rate = p["rate"] if p["rate_tensor"] is None else p["rate_tensor"].clone().requires_grad_()
    v, s_seq, m_seq = v0, [], []
    for t, x in enumerate(x_seq):
        s, after, m = msf_step(
            x,
            v,
            rate,
            p["thresholds"],
            Surrogate(case.surrogate),
            case.charge,
            p["input_scale"],
            p["v_reset"],
            case.reset_mode,
            case.detach,
        )
        if p["lengths"] is not None:
            live = (t < p["lengths"]).reshape(-1, *[1] * (x.dim() - 1))
            s, m, after = torch.where(live, s, 0.0), torch.where(live, m, 0.0), torch.where(live, after, v)
        s_seq.append(s)
        m_seq.append(m)
        v = after
    s_seq, m_seq = torch.stack(s_seq), torch.stack(m_seq)
    loss = (s_seq * p["gs_seq"].to(s_seq.dtype)).sum() + (v * p["gv"]).sum()
    if case.grad_membrane:
        loss = loss + (m_seq * p["gm_seq"]).sum()
    wanted = [x_seq, v0, *([rate] if isinstance(rate, Tensor) else [])]
    return s_seq, m_seq, v, *torch.autograd.grad(loss, wanted)


def check_msf(case: MSFCase) -> None:
    """Raise unless the kernels' counts, membranes and gradients are those of the oracle.

    To the last bit, but for gradients through an exponential, sums over lanes, and half-precision outputs, which are
    the float32 ones rounded.
    """
    p = msf_problem(case)
    s_ref, m_ref, v_ref, *grads_ref = msf_oracle(case, p)
    s, kept, v = msf_forward("cupy", case, p)
    assert_same(s, s_ref.to(case.dtype))
    assert_same(v, v_ref)
    if case.keep == "membrane":
        assert_same(kept, m_ref)
    bare = msf_forward("cupy", case, p, "none")
    assert bare[1].numel() == 0
    assert_same(bare[0], s)
    assert_same(bare[2], v)
    grads = msf_backward("cupy", case, p, kept)
    for grad, ref in zip(grads, grads_ref, strict=False):
        if case.dtype in (torch.float16, torch.bfloat16) and grad.dtype == case.dtype:
            torch.testing.assert_close(grad, ref.to(case.dtype), rtol=0.01, atol=1e-6)
        else:
            assert_close(grad, ref, "adjoint")
    wide = {key: p[key].to(case.state_dtype) for key in ("x_seq", "gs_seq")}
    ref = msf_backward("torch", replace(case, dtype=case.state_dtype), {**p, **wide}, kept)
    if case.surrogate in EXPONENTIAL:
        assert_close(grads[1], ref[1], "slope")
        if case.dtype == case.state_dtype:
            assert_close(grads[0], ref[0], "slope")
    else:
        assert_same(grads[0], ref[0].to(case.dtype))
        assert_same(grads[1], ref[1])
    assert_close(grads[2], ref[2], "adjoint")


def cut_time(monkeypatch: Any, device: Any) -> None:
    """Have every sequence of four steps and more cut into chunks in time."""
    monkeypatch.setattr(geometry, "LEAST_STEPS", 2)
    monkeypatch.setattr(geometry, "LEAST_CHUNKS", 2)
    monkeypatch.setattr(device, "size", 132)


@dataclass(frozen=True)
class PMSNCase:
    modes: int = 4
    reset_mode: str = "floor"
    burst: str = ""
    fixed: bool = False
    surrogate: str = "triangle"
    dtype: torch.dtype = torch.float32
    lengths: bool = False
    grad_drive: bool = True
    threshold: float = 1.0
    steps: int = 9
    lanes: tuple[int, int, int] = (5, 3, 2)  # L, C, K
    seed: int = 0


def pmsn_problem(case: PMSNCase) -> dict[str, Any]:
    g = torch.Generator().manual_seed(case.seed)
    complex_dtype = case.dtype.to_complex()
    channels, modes = case.lanes[1], case.modes

    def complex_randn(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=g, dtype=torch.float64).view(*shape, 2)

    def as_complex(pairs: Tensor) -> Tensor:
        return torch.view_as_complex(pairs.contiguous()).to(complex_dtype)

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(case.dtype)

    turn = 3 * torch.rand(channels, modes, generator=g, dtype=torch.float64)
    size = 0.5 + 0.45 * torch.rand(channels, modes, generator=g, dtype=torch.float64)
    seq = (case.steps, *case.lanes)
    lengths = torch.randint(0, case.steps + 1, case.lanes[:1], generator=g) if case.lengths else None
    return {
        "x_seq": real(*seq),
        "r": torch.rand(case.lanes, generator=g, dtype=torch.float64).to(case.dtype),
        "z": as_complex(complex_randn(*case.lanes, modes)),
        "a": torch.polar(size, turn).to(complex_dtype),
        "w": as_complex(complex_randn(channels, modes) / max(1, modes) ** 0.5),
        "d": real(channels),
        "lengths": lengths,
        "gs_seq": real(*seq),
        "gy_seq": real(*seq) if case.grad_drive else None,
        "gr": real(*case.lanes),
        "gz": as_complex(complex_randn(*case.lanes, modes)),
    }


INPUTS = ("x_seq", "r", "z", "a", "w", "d")


def pmsn_settings(case: PMSNCase, keep: bool = True) -> PMSNSettings:
    surrogate = Surrogate(case.surrogate)
    return PMSNSettings(
        v_threshold=case.threshold,
        reset_mode=case.reset_mode,
        burst=case.burst,
        fixed=case.fixed,
        surrogate=surrogate.name,
        width=surrogate.width,
        keep_drive=keep,
    )


def pmsn_forward(backend: str, case: PMSNCase, p: dict[str, Any], keep: bool = True) -> tuple[Tensor, ...]:
    """Spikes, drives, last r and z."""
    state, weights = PMSNState(p["r"], p["z"]), PMSNWeights(p["a"], p["w"], p["d"])
    settings = pmsn_settings(case, keep)
    s, y, last = load(backend, "pmsn").pmsn_forward(p["x_seq"], state, weights, p["lengths"], settings)
    return s, y, *last


def pmsn_backward(backend: str, case: PMSNCase, p: dict[str, Any], y_seq: Tensor) -> tuple[Tensor, ...]:
    """Gradients to x, r, z, a, w and d."""
    gr = p["gr"] if case.reset_mode == "cumulative" else None
    grads = PMSNGrads(s=p["gs_seq"], y=p["gy_seq"], m=None, r=gr, z=p["gz"])
    state, weights = PMSNState(p["r"], p["z"]), PMSNWeights(p["a"], p["w"], p["d"])
    gx, gstate, gweights = load(backend, "pmsn").pmsn_backward(
        grads, p["x_seq"], y_seq, state, weights, p["lengths"], pmsn_settings(case)
    )
    return gx, *gstate, *gweights


def pmsn_oracle(case: PMSNCase, p: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Spikes, last r and z; gradients to the inputs, from a loop of ``pmsn_step``. No gradient of y."""
    x_seq, r0, z0, a, w, d = leaves = [p[key].clone().requires_grad_() for key in INPUTS]
    r, z, s_seq = r0, z0, []
    a_, w_, d_ = a.unsqueeze(1), w.unsqueeze(1), d.unsqueeze(1)
    for t, x in enumerate(x_seq):
        surrogate = Surrogate(case.surrogate)
        s, r_, z_, _ = pmsn_step(
            x, r, z, a_, w_, d_, case.threshold, surrogate, case.reset_mode, case.burst, case.fixed
        )
        if p["lengths"] is not None:
            live = (t < p["lengths"]).reshape(-1, 1, 1)
            s, r_ = torch.where(live, s, 0.0), torch.where(live, r_, r)
            z_ = torch.where(live.unsqueeze(-1), z_, z)
        s_seq.append(s)
        r, z = r_, z_
    s_seq = torch.stack(s_seq)
    loss = (s_seq * p["gs_seq"]).sum() + (z * p["gz"].conj()).real.sum()
    if case.reset_mode == "cumulative":
        loss = loss + (r * p["gr"]).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(p_) if g is None else g for g, p_ in zip(grads, leaves, strict=True)]
    return (s_seq, r, z), tuple(grads)


def check_pmsn(case: PMSNCase) -> None:
    """Raise unless the kernels do what the oracle does.

    In float64 spikes are those of the oracle. In float32 they follow, to the last bit, from the kernel's own drive,
    which is near the oracle's; gradients are those of the plain backend at that drive.
    """
    p = pmsn_problem(case)
    double = {key: _double(value) for key, value in p.items()}
    s, y, r, z = pmsn_forward("cupy", case, p)
    _, y_ref, _, z_ref = pmsn_forward("torch", case, double)
    assert_close(y, y_ref, "drive", case.dtype)
    assert_close(z, z_ref, "drive", case.dtype)
    s_soma, r_soma = soma_loop(case, p, y)
    assert_same(s, s_soma)
    assert_same(r, r_soma)
    assert s.any() or s.numel() < 50
    bare = pmsn_forward("cupy", case, p, keep=False)
    assert bare[1].numel() == 0
    for one, other in zip((bare[0], *bare[2:]), (s, r, z), strict=True):
        assert_same(one, other)
    grads = pmsn_backward("cupy", case, p, y.new_empty(0))
    for grad, ref in zip(grads, pmsn_backward("torch", case, double, y.double()), strict=True):
        assert_close(grad, ref, "pmsn_adjoint", case.dtype)
    if case.dtype == torch.float64:
        without = replace(case, grad_drive=False)
        (s_ref, r_ref, z_ref), grads_ref = pmsn_oracle(without, {**p, "gy_seq": None})
        assert_same(s, s_ref)
        assert_close(r, r_ref, "residual")
        assert_close(z, z_ref, "drive")
        grads = pmsn_backward("cupy", without, {**p, "gy_seq": None}, y)
        for grad, ref in zip(grads, grads_ref, strict=True):
            assert_close(grad, ref, "pmsn_adjoint")


def _double(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.int64:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def soma_loop(case: PMSNCase, p: dict[str, Any], y_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and the last residual that follow from the drives, through the oracle with a soma alone (no modes)."""
    r, s_seq = p["r"], []
    none = torch.zeros(1, 0, dtype=y_seq.dtype.to_complex())
    state = none.expand(*r.shape, 0)
    for t, y in enumerate(y_seq):
        s, after, _, _ = pmsn_step(
            *(y, r, state, none, none, torch.ones(1, 1, dtype=y.dtype), case.threshold),
            *(Surrogate(case.surrogate), case.reset_mode, case.burst, case.fixed),
        )
        if p["lengths"] is not None:
            live = (t < p["lengths"]).reshape(-1, 1, 1)
            s, after = torch.where(live, s, 0.0), torch.where(live, after, r)
        s_seq.append(s)
        r = after
    return torch.stack(s_seq), r
