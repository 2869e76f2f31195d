"""PMSN, the parallel multi-compartment spiking neuron: one step.

Chen, Wu, Ma, Yan, Wu, Tan: "PMSN: A Parallel Multi-compartment Spiking Neuron for Multi-scale Temporal
Processing", arXiv 2408.14917. ``n - 1`` hidden compartments are a complex diagonal linear system (equations 9, 10);
the soma resets by whole thresholds (16 to 18). With ``Lam = -exp(log_A_real) + i A_imag`` and ``dt = exp(log_dt)``::

    e = expm1(Lam dt),  w = C B e/Lam         zero-order hold, B and C folded
    z = z + (e z + x)                         hidden state, complex: a z + x with a = 1 + e
    y = Re(sum w z) + D x                     drive of the soma
    v = r + max(y, 0)/v_threshold             r, v in units of the threshold
    s = [v >= 1],  r = v - floor(v)           one spike, all whole thresholds removed

``e`` and not ``a`` is carried: beside 1 a float has few digits for the leak of a slow mode, and the error that a
rounded ``a`` makes at every step has always the same sign. :func:`pmsn_step` is the oracle: pure, obvious, never
optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...surrogate import FireFunction, Surrogate, fire, is_soft, with_slope
from ...tensors import PMSNState, PMSNWeights

__all__ = ["BURSTS", "FIXED", "RESET_MODES", "pmsn_step", "require_known", "slope_argument", "soma_step"]

RESET_MODES: dict[str, str] = {
    "floor": "all whole thresholds are removed, negative drives are clamped (published)",
    "serial": "the same without the clamp: not parallel in the paper, the membrane may be negative (ablation)",
    "none": "no reset and no memory of the soma: it fires where the drive reaches the threshold (ablation)",
    "cumulative": "no reset: it fires while the sum of all drives is at the threshold or above (ablation)",
}
BURSTS = {False: "", True: "nearest", "published": "sawtooth"}
FIXED = 2.0**24  # steps of the fixed-point residual in one threshold; a float32 residual holds them all


def require_known(settings: PMSNSettings) -> None:
    """Raise ValueError for a reset or a burst that is none."""
    if settings.reset_mode not in RESET_MODES or settings.burst not in [*BURSTS.values()]:
        raise ValueError(
            f"unknown reset_mode or burst: {settings.reset_mode!r}, {settings.burst!r}; known: "
            f"{', '.join(RESET_MODES)}; {', '.join(map(repr, BURSTS.values()))}"
        )


def pmsn_step(
    x: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    settings: PMSNSettings,
    surrogate: Surrogate | FireFunction | None = None,
) -> tuple[Tensor, PMSNState, Tensor]:
    """One step: ``x, r`` [N, *], ``z`` [N, *, modes]; ``e, w, d`` broadcast against them.

    Returns spikes, next state, membrane before reset (volts). A non-finite input makes its lane NaN from that step on.
    ``surrogate`` stands for the one that the settings name.
    """
    spike = Surrogate(settings.surrogate, settings.width) if surrogate is None else surrogate
    (r, z), (e, w, d) = state, weights
    x = torch.where(torch.isfinite(x), x, torch.nan)
    z = z + (e * z + x.unsqueeze(-1))
    y = (w * z).sum(-1).real + d * x
    v, k, r = soma_step(y, r, settings)
    return _fire(v, k, settings, spike).to(x.dtype), PMSNState(r, z), v * settings.v_threshold


def _fire(v: Tensor, k: Tensor, settings: PMSNSettings, spike: Surrogate | FireFunction) -> Tensor:
    """Spikes: fired in units of the threshold, where the reset is exact; the surrogate sees volts, as published."""
    theta, burst = settings.v_threshold, settings.burst
    volts = v * theta
    if is_soft(spike):
        if burst:
            raise ValueError(
                "burst counts whole thresholds, a soft firing function has none: set burst=False"
            )
        return fire(volts - theta, spike)
    s = torch.where(k >= 1, k if burst else 1.0, 0.0)
    if burst:
        return with_slope(s, volts, slope_argument(v.detach(), settings), spike)
    soft = fire(volts - theta, spike)
    return s + (soft - soft.detach())


def soma_step(y: Tensor, r: Tensor, settings: PMSNSettings) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the soma: drive ``y`` (volts) and residual ``r`` -> ``v``, whole thresholds ``k``, next ``r``.

    All but ``y`` are in units of the threshold. Only ``"cumulative"`` lets a gradient pass through ``r``.
    """
    theta, mode = settings.v_threshold, settings.reset_mode
    if mode == "cumulative":
        v = r + y / theta
        return v, torch.floor(v.detach()), v
    r = r.detach()
    if mode == "none":
        v = y / theta
        return v, torch.floor(v.detach()), r
    if mode == "serial":
        v = r + y / theta
        k = torch.floor(v.detach()).clamp(min=0)
        return v, k, v.detach() - k
    q = torch.relu(y) / theta
    if settings.fixed:
        return _fixed_point(q, r)
    v = r + q
    k = torch.floor(v.detach())
    return v, k, v.detach() - k


def _fixed_point(q: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The published reset in integers of 2**-24 thresholds.

    In double every number below is an integer, unless a drive is beyond 2**28 thresholds: int64 from there.
    """
    steps = torch.round(q.detach().double().clamp(max=2.0**38) * FIXED)
    lost = steps.isnan() | r.isnan()
    c = torch.where(lost, 0.0, steps).long() + torch.round(torch.where(lost, 0.0, r).double() * FIXED).long()
    v = torch.where(lost, torch.nan, (c.double() / FIXED)).to(q.dtype)
    k = torch.where(lost, torch.nan, (c >> 24).to(q.dtype))
    r = torch.where(lost, torch.nan, ((c & (int(FIXED) - 1)).double() / FIXED).to(q.dtype))
    return v + torch.where(torch.isfinite(q), q - q.detach(), 0.0), k, r


def slope_argument(v: Tensor, settings: PMSNSettings) -> Tensor:
    """Where the surrogate is read, in volts, for membranes ``v`` in units of the threshold."""
    theta = settings.v_threshold
    volts = v * theta
    if settings.burst == "nearest":
        return volts - theta * torch.round(v.detach()).clamp(min=1)
    if settings.burst == "sawtooth":
        return torch.fmod((volts - theta).abs(), theta)
    return volts - theta
