"""PMSN, the parallel multi-compartment spiking neuron.

Chen, Wu, Ma, Yan, Wu, Tan: "PMSN: A Parallel Multi-compartment Spiking Neuron for Multi-scale Temporal
Processing", arXiv 2408.14917. ``n - 1`` hidden compartments are a complex diagonal linear system (equations 9, 10);
the soma resets by whole thresholds (16 to 18). With ``Lam = -exp(log_A_real) + i A_imag`` and ``dt = exp(log_dt)``::

    a = exp(Lam dt),  w = C B expm1(Lam dt)/Lam       zero-order hold, B and C folded
    z = a z + x                                       hidden state, complex
    y = Re(sum w z) + D x                             drive of the soma
    v = r + max(y, 0)/v_threshold                     r, v in units of the threshold
    s = [v >= 1],  r = v - floor(v)                   one spike, all whole thresholds removed

Other resets (:data:`RESET_MODES`) are those of the papers' ablations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .. import backends
from ..surrogate import FireFunction, Surrogate, as_surrogate, fire
from .base import (
    Neuron,
    NoSecondDerivative,
    State,
    channel_axes,
    first_step,
    live_steps,
    loop_vmap,
    number,
    paired_dtype,
    state_dtype,
    untracked,
)

__all__ = ["INITS", "PMSN", "RESET_MODES", "Init", "discretise", "parallel_reset", "pmsn", "pmsn_step"]

PARAMETERS = ("log_dt", "log_A_real", "A_imag", "VinvB_real", "VinvB_imag", "CV_real", "CV_imag", "D")
PER_CHANNEL = ("log_dt", "D")  # the others are [channels, modes]


@dataclass(frozen=True)
class Init:
    """A published initialisation: coupling between compartments, range of dt, output vector, direct gain."""

    coupling: float
    dt_min: float
    dt_max: float
    output: str  # "last" (unit vector of the last hidden compartment) or "ones"
    gain: Callable[..., Tensor]


INITS: dict[str, Init] = {
    "sequence": Init(5.0, 1e-3, 1e-1, "last", torch.randn),
    "shd": Init(5.0, 1e-3, 1e-1, "ones", torch.randn),
    "imagenet": Init(0.25, 0.2, 1.0, "last", torch.rand),
}


def eigensystem(modes: int, coupling: float, output: str) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, ``B = V^H 1`` and ``C = c V`` of the coupled compartments, [modes], float64 and complex128.

    The matrix has -0.5 on its diagonal and ``+-coupling*k`` beside it. With P = diag(i^k) it is
    ``-0.5 + i coupling P M P^-1``, where M is real symmetric with 1, 2, .. beside a zero diagonal. So the
    eigenvectors are P times real ones; fixing their first entry positive fixes every phase, whatever the
    linear-algebra library, and makes conjugate modes conjugate to the bit.
    """
    k = torch.arange(1, modes, dtype=torch.float64)
    mu, q = torch.linalg.eigh(torch.diag(k, 1) + torch.diag(k, -1))
    q = q * torch.where(q[0] < 0, -1.0, 1.0)
    alternate = (-1.0) ** torch.arange(modes, dtype=torch.float64).unsqueeze(1)
    mu = (mu - mu.flip(0)) / 2
    q = (q + alternate * q.flip(1)) / 2
    phase = torch.tensor([1, 1j, -1, -1j], dtype=torch.complex128)[torch.arange(modes) % 4]
    v = phase.unsqueeze(1) * q
    return coupling * mu, v.conj().sum(0), v[-1] if output == "last" else v.sum(0)


def _phi_value(z: Tensor) -> Tensor:
    small = z.abs() < 0.5
    near = torch.where(small, z, 0.0)
    series = torch.ones_like(z)
    for k in range(17 if z.dtype == torch.complex128 else 10, 1, -1):
        series = 1 + near / k * series
    far = torch.where(small, 1.0, z)
    sine = torch.sin(far.imag / 2)
    expm1 = torch.complex(
        torch.expm1(far.real) * torch.cos(far.imag) - 2 * sine * sine,
        torch.exp(far.real) * torch.sin(far.imag),
    )
    return torch.where(small, series, expm1 / far)


def _phi_slope(z: Tensor, phi: Tensor) -> Tensor:
    """``(exp(z) - phi)/z``, near 0 its series: the sum of ``(k + 1)/(k + 2)! z**k``."""
    small = z.abs() < 0.5
    near, far = torch.where(small, z, 0.0), torch.where(small, 1.0, z)
    terms = 16 if z.dtype == torch.complex128 else 9
    series = torch.zeros_like(z)
    for k in range(terms, -1, -1):
        series = series * near + (k + 1) / math.factorial(k + 2)
    return torch.where(small, series, (torch.exp(far) - phi) / far)


class _Phi(torch.autograd.Function):
    """``expm1(z)/z`` for complex z with its limit 1 at 0; value and derivative without cancellation.

    Autograd through the series would cost more than the rest of a small network.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return _phi_value(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * _phi_slope(*ctx.saved_tensors).conj()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _phi_slope(*ctx.saved_tensors)


def discretise(
    log_dt: Tensor,
    log_A_real: Tensor,
    A_imag: Tensor,
    VinvB_real: Tensor,
    VinvB_imag: Tensor,
    CV_real: Tensor,
    CV_imag: Tensor,
) -> tuple[Tensor, Tensor]:
    """Zero-order hold: the published parameters -> ``a, w`` of the recurrence, complex [channels, modes]."""
    dt = torch.exp(log_dt).unsqueeze(-1)
    z = torch.complex(-torch.exp(log_A_real), A_imag) * dt
    b = torch.complex(VinvB_real, VinvB_imag)
    c = torch.complex(CV_real, CV_imag)
    phi = _phi_value(z) if torch.compiler.is_compiling() else _Phi.apply(z)  # a compiler fuses the series
    return torch.exp(z), c * b * (phi * dt)


RESET_MODES: dict[str, str] = {
    "floor": "all whole thresholds are removed, negative drives are clamped (published)",
    "serial": "the same without the clamp: not parallel in the paper, the membrane may be negative (ablation)",
    "none": "no reset and no memory of the soma: it fires where the drive reaches the threshold (ablation)",
    "cumulative": "no reset: it fires while the sum of all drives is at the threshold or above (ablation)",
}
BURSTS = {False: "", True: "nearest", "published": "sawtooth"}
FIXED = 2.0**24  # steps of the fixed-point residual in one threshold; a float32 residual holds them all


def soma_step(
    y: Tensor, r: Tensor, v_threshold: float, reset_mode: str = "floor", fixed: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the soma: drive ``y`` (volts) and residual ``r`` -> ``v``, whole thresholds ``k``, next ``r``.

    All but ``y`` are in units of the threshold. Only ``"cumulative"`` lets a gradient pass through ``r``.
    """
    if reset_mode == "cumulative":
        v = r + y / v_threshold
        return v, torch.floor(v.detach()), v
    r = r.detach()
    if reset_mode == "none":
        v = y / v_threshold
        return v, torch.floor(v.detach()), r
    if reset_mode == "serial":
        v = r + y / v_threshold
        k = torch.floor(v.detach()).clamp(min=0)
        return v, k, v.detach() - k
    q = torch.relu(y) / v_threshold
    if not fixed:
        v = r + q
        k = torch.floor(v.detach())
        return v, k, v.detach() - k
    # In double every number below is an integer, unless a drive is beyond 2**28 thresholds: int64 from there.
    steps = torch.round(q.detach().double().clamp(max=2.0**38) * FIXED)
    lost = steps.isnan() | r.isnan()
    c = torch.where(lost, 0.0, steps).long() + torch.round(torch.where(lost, 0.0, r).double() * FIXED).long()
    v = torch.where(lost, torch.nan, (c.double() / FIXED)).to(y.dtype)
    k = torch.where(lost, torch.nan, (c >> 24).to(y.dtype))
    r = torch.where(lost, torch.nan, ((c & (int(FIXED) - 1)).double() / FIXED).to(y.dtype))
    return v + torch.where(torch.isfinite(q), q - q.detach(), 0.0), k, r


def slope_argument(v: Tensor, v_threshold: float, burst: str) -> Tensor:
    """Where the surrogate is read, in volts, for membranes ``v`` in units of the threshold."""
    volts = v * v_threshold
    if burst == "nearest":
        return volts - v_threshold * torch.round(v.detach()).clamp(min=1)
    if burst == "sawtooth":
        return torch.fmod((volts - v_threshold).abs(), v_threshold)
    return volts - v_threshold


def pmsn_step(
    x: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    v_threshold: float,
    surrogate: Surrogate | FireFunction,
    reset_mode: str = "floor",
    burst: str = "",
    fixed: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of PMSN, the oracle: ``x, r`` [N, *], ``z`` [N, *, modes]; ``a, w, d`` broadcast against them.

    Returns spikes, next ``r`` (units of the threshold), next ``z``, membrane before reset (volts).
    A non-finite input makes its lane NaN from that step on.
    """
    x = torch.where(torch.isfinite(x), x, torch.nan)
    z = a * z + x.unsqueeze(-1)
    y = (w * z).sum(-1).real + d * x
    v, k, r = soma_step(y, r, v_threshold, reset_mode, fixed)
    volts = v * v_threshold
    if getattr(surrogate, "soft", False):
        if burst:
            raise ValueError(
                "burst counts whole thresholds, a soft firing function has none: set burst=False"
            )
        return fire(volts - v_threshold, surrogate), r, z, volts
    # Fire in units of the threshold, where the reset is exact; the surrogate sees volts, as published.
    s = torch.where(k >= 1, k if burst else 1.0, 0.0).to(x.dtype)
    if burst:
        return s + _Slope.apply(volts, slope_argument(v.detach(), v_threshold, burst), surrogate), r, z, volts
    soft = fire(volts - v_threshold, surrogate)
    return s + (soft - soft.detach()), r, z, volts


class _Slope(torch.autograd.Function):
    """Zero, whose derivative to ``volts`` is that of the surrogate at ``u``."""

    @staticmethod
    def forward(volts: Tensor, u: Tensor, surrogate: Any) -> Tensor:
        return torch.zeros_like(volts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _volts, u, ctx.surrogate = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(fire(u, ctx.surrogate).sum(), u)
        return grads[0] * slope, None, None


@torch.library.custom_op("msf_pmsn_plugins::pmsn", mutates_args=())
def _pmsn_op(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    v_threshold: float,
    reset_mode: str,
    burst: str,
    fixed: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = (lengths, v_threshold, reset_mode, burst, fixed, keep)
    s_seq, y_seq, r, z = backends.load(backend).pmsn_fwd(x_seq, r, z, a, w, d, *args)
    return s_seq.contiguous(), y_seq.contiguous(), r.contiguous(), z.contiguous()


@_pmsn_op.register_fake
def _(x_seq: Tensor, r: Tensor, z: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, keep, _backend = args
    s_seq, r, z = (p.new_empty(p.shape) for p in (x_seq, r, z))
    return s_seq, x_seq.new_empty(x_seq.shape if keep else 0), r, z


@torch.library.custom_op("msf_pmsn_plugins::pmsn_backward", mutates_args=())
def _pmsn_backward_op(
    gs_seq: Tensor | None,
    gy_seq: Tensor | None,
    gr: Tensor | None,
    gz: Tensor | None,
    x_seq: Tensor,
    y_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    v_threshold: float,
    reset_mode: str,
    burst: str,
    fixed: bool,
    surrogate: str,
    width: float,
    state_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Without ``state_grad`` the gradient of z, the largest tensor of short sequences, is empty."""
    args = (x_seq, y_seq, r, z, a, w, d, lengths, v_threshold, reset_mode, burst, fixed, surrogate, width)
    grads = backends.load(backend).pmsn_bwd(gs_seq, gy_seq, gr, gz, *args, state_grad)
    gx, gr, gz, ga, gw, gd = (g.contiguous() for g in grads)
    return gx, gr, gz, ga, gw, gd


@_pmsn_backward_op.register_fake
def _(
    gs_seq: Any,
    gy_seq: Any,
    gr: Any,
    gz: Any,
    x_seq: Tensor,
    y_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gx, gr, gz, ga, gw, gd = (p.new_empty(p.shape) for p in (x_seq, r, z, a, w, d))
    *_, state_grad, _backend = args
    return gx, gr, gz if state_grad else z.new_empty(0), ga, gw, gd


for _op in (_pmsn_op, _pmsn_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _PMSNFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor,
        r: Tensor,
        z: Tensor,
        a: Tensor,
        w: Tensor,
        d: Tensor,
        lengths: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Any:
        *soma, keep, _surrogate, _width, backend = settings
        return _pmsn_op(x_seq, r, z, a, w, d, lengths, *soma, keep, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, r, z, a, w, d, lengths, ctx.settings = inputs
        ctx.save_for_backward(x_seq, output[1], r, z, a, w, d, lengths)
        if ctx.settings[1] != "cumulative":
            ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, gs_seq: Tensor | None, gy_seq: Tensor | None, gr: Tensor | None, gz: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_seq, y_seq, r, z, a, w, d, lengths = ctx.saved_tensors
        v_threshold, reset_mode, burst, fixed, keep, surrogate, width, backend = ctx.settings
        gz = None if gz is None else gz.resolve_conj()
        state_grad = ctx.needs_input_grad[2]
        settings = (v_threshold, reset_mode, burst, fixed, surrogate, width, state_grad, backend)
        run = _PMSNBackward.forward if untracked() else _PMSNBackward.apply
        gx, gr, gz, ga, gw, gd = run(
            gs_seq, gy_seq if keep else None, gr, gz, x_seq, y_seq, r, z, a, w, d, lengths, settings
        )
        gr = gr if reset_mode == "cumulative" else None
        return gx, gr, gz if state_grad else None, ga, gw, gd, None, None


class _PMSNBackward(NoSecondDerivative):
    @staticmethod
    def forward(
        gs_seq: Tensor | None,
        gy_seq: Tensor | None,
        gr: Tensor | None,
        gz: Tensor | None,
        x_seq: Tensor,
        y_seq: Tensor,
        r: Tensor,
        z: Tensor,
        a: Tensor,
        w: Tensor,
        d: Tensor,
        lengths: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Any:
        return _pmsn_backward_op(gs_seq, gy_seq, gr, gz, x_seq, y_seq, r, z, a, w, d, lengths, *settings)


def pmsn(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    v_threshold: float,
    surrogate: Surrogate,
    *,
    reset_mode: str = "floor",
    burst: str = "",
    fixed: bool = False,
    lengths: Tensor | None = None,
    drive: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """All steps of PMSN at once: a loop of :func:`pmsn_step`, as one op.

    Args:
        x_seq: input currents [T, L, C, K] (L leading lanes, C channels, K positions), float32 or float64.
        r: residual in units of the threshold, [L, C, K]; carries a gradient in mode ``"cumulative"`` only.
        z: hidden state [L, C, K, modes], complex; ``modes`` may be 0, a soma alone.
        a, w: recurrence and output weights, complex [C, modes]; see :func:`discretise`.
        d: direct gain [C].
        v_threshold: volts.
        surrogate: a named surrogate over ``v - v_threshold`` in volts.
        reset_mode: a key of :data:`RESET_MODES`.
        burst: ``""`` (one spike), or counts with the surrogate read at the distance to the ``"nearest"`` threshold or
            by the published ``"sawtooth"``.
        fixed: keep the residual in fixed point and the drive by the plain recurrence: every chunking has equal bits.
        lengths: valid steps of each leading lane, int64 [L]; later ones emit 0 and leave the state as it is.
        drive: return ``y``.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        spikes [T, L, C, K], drive ``y`` [T, L, C, K] or None, last ``r`` and ``z``.
    """
    if reset_mode not in RESET_MODES or burst not in BURSTS.values():
        raise ValueError(
            f"unknown reset_mode or burst: {reset_mode!r}, {burst!r}; known: {', '.join(RESET_MODES)}; "
            f"{', '.join(map(repr, BURSTS.values()))}"
        )
    backend = backends.resolve(backend, x_seq)
    keep = drive or (torch.is_grad_enabled() and backend not in backends.RECOMPUTE_DRIVE)
    settings = (v_threshold, reset_mode, burst, fixed, keep, surrogate.name, surrogate.width, backend)
    # Of a single step in a stream, autograd's bookkeeping would be a third.
    run = _PMSNFunction.forward if untracked() else _PMSNFunction.apply
    s_seq, y_seq, r, z = run(x_seq, r, z, a, w, d, lengths, settings)
    return s_seq, y_seq if drive else None, r, z


def membranes(
    y_seq: Tensor,
    r: Tensor,
    v_threshold: float,
    reset_mode: str = "floor",
    fixed: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    """Membranes before reset, volts, from the drives [T, N, *]: a loop of :func:`soma_step`; 0 at padded steps."""
    v_seq = []
    for y in y_seq.unbind(0):
        v, _k, r = soma_step(y, r, v_threshold, reset_mode, fixed)
        v_seq.append(v * v_threshold)
    m_seq = torch.stack(v_seq) if v_seq else torch.empty_like(y_seq)
    return m_seq if lengths is None else torch.where(live_steps(lengths, y_seq), m_seq, 0.0)


def parallel_reset(
    y_seq: Tensor,
    r: Tensor | None = None,
    v_threshold: float = 1.0,
    surrogate: Surrogate | FireFunction | None = None,
    *,
    reset_mode: str = "floor",
    burst: str = "",
    fixed: bool = False,
    lengths: Tensor | None = None,
    membrane: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The parallel reset of PMSN for any non-leaky compartment (equations 16 to 18): drives in, spikes out.

    ``v = r + max(y, 0)/v_threshold``, ``s = [v >= 1]``, ``r = v - floor(v)``: all steps at once, because the whole
    thresholds removed up to a step are the floor of a prefix sum. It holds for drives that are known in advance,
    a compartment without leak, and a reset that removes all whole thresholds; negative drives are clamped.

    Args:
        y_seq: drives in volts, [T, N, *], float32 or float64.
        r: residual in units of the threshold, [N, *]; None is rest.
        v_threshold: volts.
        surrogate: over ``v - v_threshold`` in volts; None is the triangle of half-width 1 V. A callable runs step by
            step.
        reset_mode, burst, fixed, lengths, backend: as in :func:`pmsn`.
        membrane: return the membranes.

    Returns:
        spikes [T, N, *], last ``r``, membranes before reset in volts [T, N, *] or None.
    """
    surrogate = Surrogate("triangle", 1.0) if surrogate is None else surrogate
    r = torch.zeros_like(first_step(y_seq)) if r is None else r
    none = r.new_empty(0, dtype=paired_dtype(r.dtype))
    shape = r.shape
    if not isinstance(surrogate, Surrogate):
        modes, one = none.expand(*shape, 0), r.new_ones(())
        live_seq = None if lengths is None else live_steps(lengths, y_seq)
        s_list, m_list = [], []
        for t, y in enumerate(y_seq.unbind(0)):
            soma = (v_threshold, surrogate, reset_mode, burst, fixed)
            s, after, _z, m = pmsn_step(y, r, modes, none, none, one, *soma)
            if live_seq is not None:
                after = torch.where(live_seq[t], after, r)
                s, m = torch.where(live_seq[t], s, 0.0), torch.where(live_seq[t], m, 0.0)
            r = after
            s_list.append(s)
            m_list.append(m)
        if not s_list:
            return torch.empty_like(y_seq), r, torch.empty_like(y_seq) if membrane else None
        return torch.stack(s_list), r, torch.stack(m_list) if membrane else None
    lanes = (shape[0], 1, math.prod(shape[1:]))
    s_seq, y_kept, r_last, _z = pmsn(
        y_seq.reshape(len(y_seq), *lanes),
        r.reshape(lanes),
        none.expand(*lanes, 0),
        none.expand(1, 0),
        none.expand(1, 0),
        r.new_ones(1),
        v_threshold,
        surrogate,
        reset_mode=reset_mode,
        burst=burst,
        fixed=fixed,
        lengths=lengths,
        drive=membrane,
        backend=backend,
    )
    m_seq = None
    if y_kept is not None:
        m_seq = membranes(y_kept.reshape(y_seq.shape), r, v_threshold, reset_mode, fixed, lengths)
    return s_seq.reshape(y_seq.shape), r_last.reshape(shape), m_seq


def _global_drive(
    x_seq: Tensor, a: Tensor, w: Tensor, d: Tensor, lengths: Tensor | None, backend: str
) -> Tensor:
    """The drive of the soma with the mean input in the hidden compartments: its step response times the mean."""
    steps, _lead, channels, _tail = x_seq.shape
    if lengths is None:
        mean = x_seq.mean(0)
    else:
        live = live_steps(lengths, x_seq)
        mean = torch.where(live, x_seq, 0.0).sum(0) / lengths.clamp(min=1).to(x_seq.dtype).reshape(-1, 1, 1)
    ones = x_seq.new_ones(steps, 1, channels, 1)
    rest = a.new_zeros(1, channels, 1, a.shape[1])
    triangle = Surrogate("triangle", 1.0)
    _s, response, _r, _z = pmsn(
        ones,
        rest.real.sum(-1),
        rest,
        a,
        w,
        torch.zeros_like(d),
        1.0,
        triangle,
        reset_mode="none",
        backend=backend,
    )
    assert response is not None
    return response * mean + d.reshape(-1, 1) * x_seq


# By neuron: settings, parameters and the weights made of them; a stream would make the same ones at every step.
_remembered: WeakKeyDictionary[PMSN, tuple[tuple[Any, ...], list[Tensor], tuple[Tensor, Tensor, Tensor]]]
_remembered = WeakKeyDictionary()


def _may_remember(parameters: Sequence[Tensor]) -> bool:
    """True if nothing is differentiated or traced through the weights, and comparing values costs no waiting."""
    differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    plain = all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)
    traced = (
        torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    )
    return plain and not (differentiated or traced)


class PMSN(Neuron):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917).

    Parameters are learned per channel and shared over batch and positions: ``2 + 6 (compartments - 1)`` a channel.

    Args:
        channels: size of the channel axis, or None to take it from the first input (or a loaded state dict).
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [N, C, *]; a tuple of adjacent axes (heads and their
            width, say) counts as one axis of their product.
        v_threshold: volts.
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate` over ``v - v_threshold`` in volts, or a
            callable ``u -> spikes``, which runs on the plain step loop. Default: triangle of half-width 1 V.
        init: ``"sequence"`` (S-MNIST, sequential CIFAR), ``"shd"`` or ``"imagenet"``, as published.
        reset_mode: a key of :data:`RESET_MODES`; ``"floor"`` is published.
        burst: emit the number of removed thresholds instead of one spike. True reads the surrogate at the distance
            to the nearest threshold; ``"published"`` by the published sawtooth, which jumps.
        coeff: factor on the drive of the soma before the reset (published for sequential CIFAR by columns: 0.2).
        residual: ``"float"``, or ``"fixed"``: the residual is kept in steps of 2**-24 and the drive computed by the
            plain recurrence, so that every chunking of a sequence gives the same bits. On the torch backend this
            walks time step by step.
        tied: keep the hidden compartments as conjugate pairs, of which one half is computed: half the work and
            half the parameters of the modes. Needs an odd number of compartments.
        context: ``"local"``, or ``"global"``: the mean input over time drives the hidden compartments, the present
            input only the soma (our reading of the paper's global variant). Not causal: it takes whole sequences.
        dt_scale: factor on the learned step size, for data at another sampling rate: half the step, twice the
            steps. The time constants stay; the soma sums over steps, so give ``coeff`` the same factor to keep the
            spikes per second.
        backend: ``"auto"`` or the name of a backend.

    State: ``(r, z)``: the residual in units of the threshold [N, *] and the hidden state, complex [N, *, modes].

    Raises:
        ValueError: a parameter out of its range, unknown init, surrogate or backend; an input whose channel axis
            has another size.
    """

    VARIANTS: ClassVar[
        dict[str, Any]
    ] = {  # arguments of the constructor that are seldom given: their usual values
        "reset_mode": "floor",
        "burst": False,
        "coeff": 1.0,
        "residual": "float",
        "tied": False,
        "context": "local",
        "dt_scale": 1.0,
    }
    state_names = ("r", "z")
    log_dt: nn.Parameter
    log_A_real: nn.Parameter
    A_imag: nn.Parameter
    VinvB_real: nn.Parameter
    VinvB_imag: nn.Parameter
    CV_real: nn.Parameter
    CV_imag: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate | FireFunction | None = None,
        init: str = "sequence",
        reset_mode: str = "floor",
        burst: bool | str = False,
        coeff: float = 1.0,
        residual: str = "float",
        tied: bool = False,
        context: str = "local",
        dt_scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        if not (type(compartments) is int and 2 <= compartments <= 17):
            raise ValueError(f"compartments must be an integer from 2 to 17, got {compartments!r}")
        if channels is not None and not (type(channels) is int and channels >= 1):
            raise ValueError(
                f"channels must be a positive integer or None (taken from the first input), got {channels!r}"
            )
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        if tied and compartments % 2 == 0:
            raise ValueError(
                f"tied=True needs an odd number of compartments, so that the hidden ones pair up; got {compartments}"
            )
        dims = channel_dim if isinstance(channel_dim, tuple | list) else (channel_dim,)
        if not dims or any(type(d) is not int for d in dims):
            raise TypeError(f"channel_dim must be an integer or a tuple of them, got {channel_dim!r}")
        self.compartments = compartments
        self.tied = bool(tied)
        self.channel_dim = channel_dim
        self.v_threshold = v_threshold
        self.init = init
        self.reset_mode = reset_mode
        self.burst = burst
        self.coeff = coeff
        self.residual = residual
        self.context = context
        self.dt_scale = dt_scale
        self.surrogate = surrogate
        self._check()
        with torch.inference_mode(False):  # born in inference mode they could never be given a size
            for name in PARAMETERS:
                setattr(self, name, UninitializedParameter())
        if channels is not None:
            self.materialize(channels)

    @property
    def modes(self) -> int:
        """Number of complex modes: the hidden compartments, or one of each tied pair."""
        return (self.compartments - 1) // (2 if self.tied else 1)

    @property
    def channels(self) -> int | None:
        """Size of the channel axis, None before it is known."""
        return None if isinstance(self.D, UninitializedParameter) else len(self.D)

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(Surrogate("triangle", 1.0) if value is None else as_surrogate(value))

    def _check(self) -> None:
        """Raise on settings that cannot work; they may have been changed since construction."""
        for name in ("v_threshold", "coeff", "dt_scale"):
            value = number(name, getattr(self, name))
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        for name, known in (
            ("reset_mode", tuple(RESET_MODES)),
            ("burst", tuple(BURSTS)),
            ("residual", ("float", "fixed")),
            ("context", ("local", "global")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(repr, known))}"
                )
        if self.burst and self.reset_mode not in ("floor", "serial"):
            raise ValueError(
                f"burst counts the thresholds that a reset removes, reset_mode={self.reset_mode!r} removes none: "
                "use 'floor' or 'serial'"
            )
        if self.residual == "fixed" and self.reset_mode != "floor":
            raise ValueError(f"residual='fixed' belongs to reset_mode='floor', got {self.reset_mode!r}")

    def _soma(self) -> tuple[float, str, str, bool]:
        """Threshold, reset mode, burst and fixed point as they are now, checked."""
        self._check()
        return float(self.v_threshold), self.reset_mode, BURSTS[self.burst], self.residual == "fixed"

    def materialize(self, channels: int) -> None:
        """Give the parameters their size, in place (an optimizer may hold them already), and initialise them."""
        with torch.inference_mode(False):  # born in inference mode they could never be trained
            for name in PARAMETERS:
                parameter = getattr(self, name)
                if isinstance(parameter, UninitializedParameter):
                    parameter.materialize((channels,) if name in PER_CHANNEL else (channels, self.modes))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation: coupled compartments in their eigenbasis, random dt and direct gain."""
        init = INITS[self.init]
        # Ascending frequencies: of a tied pair the second half is the positive one.
        frequency, b, c = (
            part[-self.modes :] for part in eigensystem(self.compartments - 1, init.coupling, init.output)
        )
        low, high = math.log(init.dt_min), math.log(init.dt_max)
        self.log_dt.uniform_(low, high)
        self.D.copy_(init.gain(self.D.shape, dtype=self.D.dtype, device=self.D.device))
        self.log_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(frequency.expand_as(self.A_imag))
        for name, value in (("VinvB", b), ("CV", c)):
            getattr(self, f"{name}_real").copy_(value.real.expand_as(self.A_imag))
            getattr(self, f"{name}_imag").copy_(value.imag.expand_as(self.A_imag))

    @torch.no_grad()
    def tie(self, tolerance: float = 0.0) -> PMSN:
        """This neuron with tied modes: a new one that computes the same with half the modes.

        Raises:
            ValueError: the modes are not conjugate pairs within ``tolerance``, relative to the largest entry.
        """
        self._require_channels("tie()")
        if self.tied:
            raise ValueError("the modes of this PMSN are tied already")
        pair = PMSN(
            channels=self.channels,
            compartments=self.compartments,
            channel_dim=self.channel_dim,
            v_threshold=self.v_threshold,
            surrogate=self.surrogate,
            init=self.init,
            backend=self.backend,
            **{name: getattr(self, name) for name in self.VARIANTS} | {"tied": True},
        ).to(self.D.device, self.D.dtype)
        order = self.A_imag.argsort(1)
        for name in PARAMETERS:
            value = getattr(self, name)
            if name not in PER_CHANNEL:
                value = value.gather(1, order)
                sign = -1 if name in ("A_imag", "VinvB_imag", "CV_imag") else 1
                apart = float((value - sign * value.flip(1)).abs().max() / value.abs().max().clamp(min=1e-30))
                if not apart <= tolerance:
                    raise ValueError(
                        f"the modes are not conjugate pairs: {name} is off by {apart:.3g} of its largest entry, "
                        f"tolerance {tolerance:g}. Keep them untied, or raise the tolerance"
                    )
                value = (value + sign * value.flip(1))[:, self.modes // 2 :] / 2
            getattr(pair, name).copy_(value)
        return pair

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        d = state_dict.get(prefix + "D", state_dict.get(prefix + "neuron.D"))
        if self.channels is None and isinstance(d, Tensor) and not isinstance(d, UninitializedParameter):
            self.materialize(len(d))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._require_channels("state_dict()")
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _require_channels(self, what: str) -> None:
        if self.channels is None:
            raise RuntimeError(
                f"{what} of a PMSN whose channel count is not known yet: pass channels=..., or run one forward pass "
                "or load a state dict first"
            )

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        axes = channel_axes(self.channel_dim, x)
        width = math.prod([x.shape[d] for d in axes])  # a list: torch.compile traces no generator here
        if self.channels is None:
            if width == 0:
                raise ValueError(
                    f"cannot take the channel count from an input of shape {tuple(x.shape)} per step"
                )
            self.materialize(width)
        elif width != self.channels:
            raise ValueError(
                f"this PMSN has {self.channels} channels, but axis {self.channel_dim} of one step "
                f"{tuple(x.shape)} has {width}: pass channels={width}, or the channel_dim that holds "
                f"{self.channels}"
            )

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        dtype = state_dtype(x.dtype)
        return (x.shape, dtype), (torch.Size((*x.shape, self.modes)), paired_dtype(dtype))

    def initial_state(self, x: Tensor) -> State:
        return tuple(torch.zeros(shape, dtype=dtype, device=x.device) for shape, dtype in self.state_spec(x))

    def _rest(self, x: Tensor) -> State:
        if self.context == "global" or type(self).initial_state is not PMSN.initial_state:
            return self.initial_state(x)
        # In short sequences the hidden state is larger than all else: kernels need not read zeros.
        (r_shape, r_dtype), (z_shape, z_dtype) = self.state_spec(x)
        r = torch.zeros(r_shape, dtype=r_dtype, device=x.device)
        return r, torch.zeros((), dtype=z_dtype, device=x.device).expand(z_shape)

    def weights(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """``a, w`` (complex [channels, modes]) and ``d`` ([channels]) of the recurrence, in ``dtype``.

        ``coeff`` is in ``w`` and ``d``; the second mode of a tied pair is in ``w``, twice the real part of the first.
        """
        self._require_channels("the weights")
        parameters = [getattr(self, name) for name in PARAMETERS]
        if not _may_remember(parameters):
            return self._weights(parameters, dtype)
        settings = (dtype, self.dt_scale, self.coeff, self.tied)
        known = _remembered.get(self)
        if known is None or known[0] != settings or not all(map(torch.equal, known[1], parameters)):
            with torch.inference_mode(False), torch.no_grad():  # usable in every mode
                copies = [parameter.detach().clone() for parameter in parameters]
                known = _remembered[self] = settings, copies, self._weights(copies, dtype)
        a, w, d = known[2]
        return a, w, d

    def _weights(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        log_dt, log_a, a_imag, b_re, b_im, c_re, c_im, d = (parameter.to(dtype) for parameter in parameters)
        if self.dt_scale != 1.0:
            log_dt = log_dt + math.log(self.dt_scale)
        a, w = discretise(log_dt, log_a, a_imag, b_re, b_im, c_re, c_im)
        factor = self.coeff * (2 if self.tied else 1)
        return a, w if factor == 1 else factor * w, d if self.coeff == 1 else self.coeff * d

    def step_weights(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`weights` in shapes that broadcast against one step ``x`` [N, *], and its modes behind."""
        axes = channel_axes(self.channel_dim, x)
        shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
        a, w, d = self.weights(dtype)
        return a.reshape(*shape, self.modes), w.reshape(*shape, self.modes), d.reshape(shape)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        if self.context == "global":
            raise ValueError(
                "context='global' uses the mean input over all steps: there is no single step. "
                "Give whole sequences, or set context='local'"
            )
        self.check_input(x)
        r, z = self.check_state(x, state)
        a, w, d = self.step_weights(x, r.dtype)
        theta, reset_mode, burst, fixed = self._soma()
        s, r, z, m = pmsn_step(x.to(r.dtype), r, z, a, w, d, theta, self.surrogate, reset_mode, burst, fixed)
        return s.to(x.dtype), (r, z), m

    def _begin(self, x_seq: Tensor, state: State | None) -> State:
        given, state = state, super()._begin(x_seq, state)
        # A whole sequence ends at rest again; what else comes in was left by a local neuron.
        if (
            self.context == "global"
            and given is not None
            and not torch.compiler.is_compiling()
            and any(map(torch.any, state))
        ):
            raise ValueError(
                "context='global' uses the mean input over all steps: a state cannot be carried into it. "
                "Give whole sequences with state=None, or set context='local'"
            )
        return state

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        surrogate = self.surrogate
        has_kernel = self._has_kernel(surrogate)
        if self.context == "local" and not has_kernel:
            return self._loop(x_seq, state, membrane, lengths)
        r, z = state
        theta, reset_mode, burst, fixed = self._soma()
        axes = [d + 1 for d in channel_axes(self.channel_dim, first_step(x_seq))]
        shape = x_seq.shape
        lead, tail = math.prod(shape[1 : axes[0]]), math.prod(shape[axes[-1] + 1 :])
        lanes = (lead, len(self.D), tail)
        lane_lengths = None
        if lengths is not None and shape[1]:
            lane_lengths = lengths.repeat_interleave(lead // shape[1])
        a, w, d = self.weights(r.dtype)
        x_lanes = x_seq.to(r.dtype).reshape(len(x_seq), *lanes)
        if self.context == "global":
            drive = _global_drive(x_lanes, a, w, d, lane_lengths, self.backend).reshape(shape)
            s_seq, _r, m_seq = parallel_reset(
                drive,
                r,
                theta,
                surrogate,
                reset_mode=reset_mode,
                burst=burst,
                fixed=fixed,
                lengths=lengths,
                membrane=membrane,
                backend=self.backend,
            )
            return s_seq.to(x_seq.dtype), state, m_seq
        assert isinstance(surrogate, Surrogate)
        s_seq, y_seq, r_last, z_last = pmsn(
            x_lanes,
            r.reshape(lanes),
            z.reshape(*lanes, self.modes),
            a,
            w,
            d,
            theta,
            surrogate,
            reset_mode=reset_mode,
            burst=burst,
            fixed=fixed,
            lengths=lane_lengths,
            drive=membrane,
            backend=self.backend,
        )
        m_seq = None
        if y_seq is not None:
            m_seq = membranes(y_seq.reshape(shape), r, theta, reset_mode, fixed, lengths)
        return s_seq.reshape(shape).to(x_seq.dtype), (r_last.reshape(r.shape), z_last.reshape(z.shape)), m_seq

    def extra_repr(self) -> str:
        special = "".join(
            f"{name}={getattr(self, name)!r}, "
            for name, usual in self.VARIANTS.items()
            if getattr(self, name) != usual
        )
        return (
            f"channels={self.channels}, compartments={self.compartments}, channel_dim={self.channel_dim}, "
            f"v_threshold={self.v_threshold}, init={self.init!r}, {special}backend={self.backend!r}"
        )
