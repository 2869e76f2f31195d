"""Problems for the kernels and what must hold for their results, against the oracle and the plain torch backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends.cupy import geometry
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons.msf import msf_step
from msf_pmsn_plugins.neurons.pmsn import pmsn_step
from msf_pmsn_plugins.settings import MSFSettings, MSFValues, PMSNSettings
from msf_pmsn_plugins.surrogate import Surrogate, slope
from msf_pmsn_plugins.tensors import (
    MSFGrads,
    MSFParameters,
    PMSNGrads,
    PMSNState,
    PMSNWeights,
    Slopes,
    state_dtype,
)
from tolerances import assert_close, assert_same

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
    threshold: str = ""  # likewise
    amount: str = ""  # of a soft reset, likewise
    delay: bool = False
    retake: bool = False
    slopes: bool = False  # given to the backward
    lengths: bool = False
    grad_membrane: bool = False
    v_reset: float = 0.0
    steps: int = 6
    shape: tuple[int, ...] = (3, 8)
    seed: int = 0

    @property
    def state_dtype(self) -> torch.dtype:
        return state_dtype(self.dtype)


def msf_problem(case: MSFCase) -> dict[str, Any]:
    """Tensors and constants of a case. Inputs lie on a grid of 1/16, so membranes meet thresholds."""
    g = torch.Generator().manual_seed(case.seed)
    state = case.state_dtype

    def grid(*shape: int) -> Tensor:
        return torch.randint(-24, 56, shape, generator=g) / 16

    rate = {"tau": 3.0, "w": 0.375, "decay": 0.25}.get(CHARGES[case.charge].rate, 0.0)

    def learned(how: str, value: float) -> Tensor | None:
        shape = () if how == "one" else (*[1] * (len(case.shape) - 1), case.shape[-1])
        return (value + torch.rand(shape, generator=g) / 8).to(state) if how else None

    rate_tensor = learned(case.learned, rate)
    lengths = torch.randint(0, case.steps + 1, case.shape[:1], generator=g) if case.lengths else None
    return {
        "x_seq": grid(case.steps, *case.shape).to(case.dtype),
        "v": grid(*case.shape).to(state),
        "lengths": lengths,
        "rate_tensor": rate_tensor,
        "threshold": learned(case.threshold, 0.5),
        "amount": learned(case.amount, 0.75),
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
        reset_amount=1.25,
        reset_delay=case.delay,
        retake=case.retake,
        detach_reset=case.detach,
        surrogate=surrogate.name,
        width=surrogate.width,
        keep=keep,
    )


def msf_parameters(p: dict[str, Any]) -> MSFParameters:
    return MSFParameters(p["rate_tensor"], p["threshold"], p["amount"])


def msf_forward(
    backend: str, case: MSFCase, p: dict[str, Any], keep: str | None = None
) -> tuple[Tensor, ...]:
    """Counts, what was kept, the last state."""
    settings = msf_settings(case, p, case.keep if keep is None else keep)
    module = backends.load(backend, "msf")
    return module.msf_forward(p["x_seq"], p["v"], msf_parameters(p), p["lengths"], settings)


def msf_backward(backend: str, case: MSFCase, p: dict[str, Any], kept: Tensor) -> list[Tensor]:
    """Gradients to x, v and what is learned."""
    grads = MSFGrads(p["gs_seq"], p["gm_seq"] if case.grad_membrane else None, p["gv"])
    settings, parameters, slopes = msf_settings(case, p, case.keep), msf_parameters(p), None
    if case.slopes:
        total, first = msf_slopes(settings, parameters, kept)
        slopes = Slopes(views(total)["gap"], views(first)["skew"])  # each in memory of its own kind
        settings = replace(settings, surrogate="")
    gx, gv, of_parameters = backends.load(backend, "msf").msf_backward(
        grads, p["x_seq"], kept, p["v"], parameters, p["lengths"], slopes, settings
    )
    return [gx, gv, *(g for g in of_parameters if g is not None)]


def msf_slopes(settings: MSFSettings, parameters: MSFParameters, m_seq: Tensor) -> Slopes:
    """What the surrogate of the settings gives at the membranes."""
    thresholds = MSFValues(settings, parameters).thresholds
    each = [slope(m_seq - theta, settings.surrogate, settings.width) for theta in thresholds]
    total = each[0]
    for part in each[1:]:
        total = total + part
    return Slopes(total, each[0])


def msf_oracle(case: MSFCase, p: dict[str, Any]) -> tuple[Tensor, ...]:
    """Counts, membranes, last state and gradients to x, v and what is learned, from a loop of ``msf_step``."""
    settings = msf_settings(case, p, "membrane")
    x_seq = p["x_seq"].to(case.state_dtype).requires_grad_()
    v0 = p["v"].clone().requires_grad_()
    parameters = MSFParameters(
        *(None if tensor is None else tensor.clone().requires_grad_() for tensor in msf_parameters(p))
    )
    v, s_seq, m_seq = v0, [], []
    for t, x in enumerate(x_seq):
        s, after, m = msf_step(x, v, settings, parameters)
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
    wanted = [x_seq, v0]
    if not case.retake:  # there no gradient of the parameters is asked for
        wanted += [tensor for tensor in parameters if tensor is not None]
    return s_seq, m_seq, v, *torch.autograd.grad(loss, wanted)


def check_states(case: MSFCase, backend: str = "cupy") -> None:
    """Raise unless the kernel keeps the state that each step leaves."""
    p = msf_problem(case)
    s, states, v = msf_forward(backend, case, p, "state")
    s_ref, states_ref, _ = msf_forward("torch", case, p, "state")
    assert_same(s, s_ref)
    assert_same(states, states_ref)
    assert_same(states[-1], v)


def check_msf(
    case: MSFCase, p: dict[str, Any] | None = None, given: dict[str, Any] | None = None, backend: str = "cupy"
) -> None:
    """Raise unless the kernels' counts, membranes and gradients are those of the oracle, for a problem of the case;
    ``given`` is the same problem where the kernels run, if that is elsewhere.

    To the last bit, but for gradients through an exponential, sums over lanes, and half-precision outputs, which are
    the float32 ones rounded. ``p`` stands for the problem of the case: the same in views.
    """
    p = msf_problem(case) if p is None else p
    given = p if given is None else given
    s_ref, m_ref, v_ref, *grads_ref = msf_oracle(case, p)
    on_device = msf_forward(backend, case, given)
    s, kept, v = home(on_device)
    assert_same(s, s_ref.to(case.dtype))
    assert_same(v, v_ref)
    assert kept.dtype == (torch.uint8 if case.keep == "code" else case.state_dtype)
    if case.keep == "membrane":
        assert_same(kept, m_ref)
    bare = home(msf_forward(backend, case, given, "none"))
    assert bare[1].numel() == 0
    assert_same(bare[0], s)
    assert_same(bare[2], v)
    grads = home(msf_backward(backend, case, given, on_device[1]))
    for grad, ref in zip(grads[: len(grads_ref)], grads_ref, strict=True):
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
    for grad, expected in zip(grads[2:], ref[2:], strict=True):
        assert_close(grad, expected, "adjoint")


def move(p: dict[str, Any], device: str) -> dict[str, Any]:
    """The problem ``p`` on another device."""
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in p.items()}


def home(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def few_lanes(monkeypatch: Any, shim: Any = None) -> None:
    """Have MSF read ahead, one lane a thread, in sequences of any length; ``shim`` stands in for a device."""
    monkeypatch.setattr(geometry, "LONG_STEPS", 1)
    if shim is not None:
        monkeypatch.setattr(shim, "size", 132)


def cut_time(monkeypatch: Any, shim: Any = None) -> None:
    """Have every sequence of four steps and more cut into chunks in time; ``shim`` stands in for a device."""
    monkeypatch.setattr(geometry, "LEAST_STEPS", 2)
    monkeypatch.setattr(geometry, "LEAST_CHUNKS", 2)
    if shim is not None:
        monkeypatch.setattr(shim, "size", 132)


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
    grad_membrane: bool = False
    slopes: bool = False  # given to the backward
    threshold: float = 1.0
    steps: int = 9
    lanes: tuple[int, int, int] = (5, 3, 2)  # L, C, K
    seed: int = 0

    @property
    def state_dtype(self) -> torch.dtype:
        return state_dtype(self.dtype)


def pmsn_problem(case: PMSNCase) -> dict[str, Any]:
    g = torch.Generator().manual_seed(case.seed)
    complex_dtype = case.state_dtype.to_complex()
    channels, modes = case.lanes[1], case.modes

    def complex_randn(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=g, dtype=torch.float64).view(*shape, 2)

    def as_complex(pairs: Tensor) -> Tensor:
        return torch.view_as_complex(pairs.contiguous()).to(complex_dtype)

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(case.state_dtype)

    turn = 3 * torch.rand(channels, modes, generator=g, dtype=torch.float64)
    size = 0.5 + 0.45 * torch.rand(channels, modes, generator=g, dtype=torch.float64)
    seq = (case.steps, *case.lanes)
    lengths = torch.randint(0, case.steps + 1, case.lanes[:1], generator=g) if case.lengths else None
    x_seq = real(*seq).to(case.dtype)
    if not modes:
        x_seq[case.steps // 2] = 0  # drives of nothing at all, which the clamp passes no gradient
    return {
        "x_seq": x_seq,
        "r": torch.rand(case.lanes, generator=g, dtype=torch.float64).to(case.state_dtype),
        "z": as_complex(complex_randn(*case.lanes, modes)),
        "e": (torch.polar(size, turn) - 1).to(complex_dtype),
        "w": as_complex(complex_randn(channels, modes) / max(1, modes) ** 0.5),
        "d": real(channels),
        "lengths": lengths,
        "gs_seq": real(*seq).to(case.dtype),
        "gy_seq": real(*seq) if case.grad_drive else None,
        "gm_seq": real(*seq) if case.grad_membrane else None,
        "gr": real(*case.lanes),
        "gz": as_complex(complex_randn(*case.lanes, modes)),
    }


def state_of(p: dict[str, Any]) -> PMSNState:
    return PMSNState(p["r"], p["z"])


def weights_of(p: dict[str, Any]) -> PMSNWeights:
    return PMSNWeights(p["e"], p["w"], p["d"])


def pmsn_settings(case: PMSNCase, keep: bool = True, residuals: bool = False) -> PMSNSettings:
    surrogate = Surrogate(case.surrogate)
    return PMSNSettings(
        v_threshold=case.threshold,
        reset_mode=case.reset_mode,
        burst=case.burst,
        fixed=case.fixed,
        surrogate=surrogate.name,
        width=surrogate.width,
        keep_drive=keep,
        keep_membrane=keep,
        keep_residual=residuals,
    )


def pmsn_forward(
    backend: str, case: PMSNCase, p: dict[str, Any], keep: bool = True, residuals: bool = False
) -> tuple[Tensor, ...]:
    """Spikes, drives, membranes, last r (or ``residuals``, those of every step) and z."""
    settings, module = pmsn_settings(case, keep, residuals), backends.load(backend, "pmsn")
    *sequences, last = module.pmsn_forward(p["x_seq"], state_of(p), weights_of(p), p["lengths"], settings)
    return *sequences, *last


def pmsn_backward(backend: str, case: PMSNCase, p: dict[str, Any], y_seq: Tensor) -> tuple[Tensor, ...]:
    """Gradients to x, r, z, e, w and d."""
    gr = p["gr"] if case.reset_mode == "cumulative" else None
    grads = PMSNGrads(s=p["gs_seq"], y=p["gy_seq"], m=p["gm_seq"], r=gr, z=p["gz"])
    settings, slopes = pmsn_settings(case), None
    if case.slopes:
        rising = torch.linspace(0, 2, p["x_seq"].numel(), dtype=p["r"].dtype)  # of equal bits on all devices
        slopes = Slopes(rising.view(p["x_seq"].shape).to(p["r"].device))
        settings = replace(settings, surrogate="")
    gx, state, weights = backends.load(backend, "pmsn").pmsn_backward(
        grads, p["x_seq"], y_seq, state_of(p), weights_of(p), p["lengths"], slopes, settings
    )
    return gx, *state, *weights


def pmsn_oracle(case: PMSNCase, p: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Spikes, membranes, last r and z; gradients to the inputs, from a loop of ``pmsn_step``. No gradient of y."""
    leaves = [p[key].clone().requires_grad_() for key in ("x_seq", "r", "z", "e", "w", "d")]
    x_seq, r, z, e, w, d = leaves
    state, weights = PMSNState(r, z), PMSNWeights(e.unsqueeze(1), w.unsqueeze(1), d.unsqueeze(1))
    s_seq, m_seq = [], []
    for t, x in enumerate(x_seq):
        s, after, m = pmsn_step(x, state, weights, pmsn_settings(case))
        if p["lengths"] is not None:
            live = (t < p["lengths"]).reshape(-1, 1, 1)
            s, m = torch.where(live, s, 0.0), torch.where(live, m, 0.0)
            after = PMSNState(
                torch.where(live, after.r, state.r), torch.where(live.unsqueeze(-1), after.z, state.z)
            )
        s_seq.append(s)
        m_seq.append(m)
        state = after
    s_seq, m_seq = torch.stack(s_seq), torch.stack(m_seq)
    loss = (s_seq * p["gs_seq"]).sum() + (state.z * p["gz"].conj()).real.sum()
    if case.grad_membrane:
        loss = loss + (m_seq * p["gm_seq"]).sum()
    if case.reset_mode == "cumulative":
        loss = loss + (state.r * p["gr"]).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(p_) if g is None else g for g, p_ in zip(grads, leaves, strict=True)]
    return (s_seq, m_seq, *state), tuple(grads)


def check_pmsn(
    case: PMSNCase,
    p: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    backend: str = "cupy",
) -> None:
    """Raise unless the kernels do what the oracle does, for a problem of the case; ``given`` as in :func:`check_msf`.

    In float64 spikes are those of the oracle. In float32 they follow, to the last bit, from the kernel's own drive,
    which is near the oracle's; gradients are those of the plain backend at that drive.
    """
    p = pmsn_problem(case) if p is None else p
    given = p if given is None else given
    double = {key: _double(value) for key, value in p.items()}
    s, y, m, r, z = home(pmsn_forward(backend, case, given))
    _, y_ref, _, _, z_ref = pmsn_forward("torch", case, double)
    assert_close(y, y_ref, "drive", case.state_dtype)
    assert_close(z, z_ref, "drive", case.state_dtype)
    s_loop, m_loop, r_loop = soma_loop(case, p, y)
    for one, other in ((s, s_loop.to(case.dtype)), (m, m_loop), (r, r_loop[-1])):
        assert_same(one, other)
    every = home(pmsn_forward(backend, case, given, residuals=True))
    for one, other in zip(every, (s, y, m, r_loop, z), strict=True):
        assert_same(one, other)
    assert s.any() or s.numel() < 50
    bare = home(pmsn_forward(backend, case, given, keep=False))
    assert bare[1].numel() == bare[2].numel() == 0
    for one, other in zip((bare[0], *bare[3:]), (s, r, z), strict=True):
        assert_same(one, other)
    none = given["r"].new_empty(0)  # the drives, which our kernels do not read
    grads = home(pmsn_backward(backend, case, given, none))
    for grad, ref in zip(grads, pmsn_backward("torch", case, double, y.double()), strict=True):
        assert_close(grad, ref, "pmsn_adjoint")
    if case.dtype != case.state_dtype:
        wide = {**given, **{key: given[key].to(case.state_dtype) for key in ("x_seq", "gs_seq")}}
        expected = (*pmsn_forward(backend, case, wide), *pmsn_backward(backend, case, wide, none))
        for one, other in zip((s, y, m, r, z, *grads), home(expected), strict=True):
            assert_same(one, other.to(one.dtype))
    if case.dtype == torch.float64:
        without = replace(case, grad_drive=False, slopes=False)
        (s_ref, m_ref, r_ref, z_ref), grads_ref = pmsn_oracle(without, {**p, "gy_seq": None})
        assert_same(s, s_ref)
        for one, other in ((m, m_ref), (r, r_ref), (z, z_ref)):
            assert_close(one, other, "residual")
        grads = home(pmsn_backward(backend, without, {**given, "gy_seq": None}, none))
        for grad, ref in zip(grads, grads_ref, strict=True):
            assert_close(grad, ref, "pmsn_adjoint")


def _double(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.int64:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def soma_loop(case: PMSNCase, p: dict[str, Any], y_seq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membranes and residuals that follow from the drives, through the oracle with a soma alone."""
    none = torch.zeros(1, 0, dtype=y_seq.dtype.to_complex())
    weights = PMSNWeights(none, none, torch.ones(1, 1, dtype=y_seq.dtype))
    r, s_seq, m_seq, r_seq = p["r"], [], [], []
    for t, y in enumerate(y_seq):
        state = PMSNState(r, none.expand(*r.shape, 0))
        s, (after, _), m = pmsn_step(y, state, weights, pmsn_settings(case))
        if p["lengths"] is not None:
            live = (t < p["lengths"]).reshape(-1, 1, 1)
            s, m, after = torch.where(live, s, 0.0), torch.where(live, m, 0.0), torch.where(live, after, r)
        s_seq.append(s)
        m_seq.append(m)
        r_seq.append(r := after)
    return torch.stack(s_seq), torch.stack(m_seq), torch.stack(r_seq)


def views(seq: Tensor) -> dict[str, Tensor]:
    """Views [T, *] with the values of ``seq``: misaligned; with a gap between steps, of whole steps or of one element;
    permuted; one step repeated; lazily negated.
    """
    lanes = seq[0].numel()
    odd = seq.new_empty(seq.numel() + 1)[1:].view(seq.shape).copy_(seq)
    gap = seq.new_empty(seq.shape[0], 3, *seq.shape[1:])[:, 1].copy_(seq)
    skew = seq.new_empty(len(seq), lanes + 1)[:, :lanes].unflatten(1, seq.shape[1:]).copy_(seq)
    turned = seq.movedim(-1, 0).contiguous().movedim(0, -1)
    return {
        "plain": seq,
        "odd": odd,
        "gap": gap,
        "skew": skew,
        "turned": turned,
        "repeated": seq[:1].expand(seq.shape),
        "negated": torch._neg_view(-seq),
    }


# How each sequence of a problem lies, where they do not all lie alike.
APART = {"x_seq": "gap", "gs_seq": "skew", "gy_seq": "gap", "gm_seq": "odd"}
SEQUENCES = tuple(APART)
STATES = ("v", "gv", "r", "gr", "z", "gz", "e", "w", "d")


def laid_out(
    p: dict[str, Any], layout: str, odd: Iterable[str] = (), lazy: bool = False, strided_lengths: bool = False
) -> dict[str, Any]:
    """The problem ``p`` in other memory: the same numbers, but where one step is repeated.

    Args:
        layout: of the sequences, a key of :func:`views`, or ``"apart"``: each another.
        odd: states and weights that are misaligned.
        lazy: the states and weights are lazily negated, the complex ones conjugated.
        strided_lengths: lengths are a column of a matrix.
    """
    p = dict(p)
    for key in SEQUENCES:
        if p.get(key) is not None:
            p[key] = views(p[key])[APART[key] if layout == "apart" else layout]
    for key in STATES:
        if p.get(key) is None:
            continue
        if lazy:
            value = p[key]
            p[key] = value.conj().resolve_conj().conj() if value.is_complex() else torch._neg_view(-value)
        elif key in odd:
            p[key] = views(p[key][None])["odd"][0]
    if strided_lengths and p["lengths"] is not None:
        p["lengths"] = torch.stack([p["lengths"], p["lengths"] + 7], 1)[:, 0]
    return p


def slow_unless(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Parameters of which all but the ``quick`` ones belong to the slow tests: each needs libraries of its own."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
