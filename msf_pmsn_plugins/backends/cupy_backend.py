"""The package ``cupy`` behind the signatures that the ops still call. Temporary."""

from __future__ import annotations

from typing import Any

from ..settings import MSFSettings, PMSNSettings
from ..tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights
from .cupy import msf, pmsn


def msf_fwd(x, v, lengths, rate_tensor, rate, scale, charge, thresholds, v_reset, reset, width, keep) -> Any:  # type: ignore[no-untyped-def]
    settings = MSFSettings(charge, tuple(thresholds), rate, scale, v_reset, reset, width=width, keep=keep)
    return msf.msf_forward(x, v, MSFParameters(rate_tensor), lengths, settings)


def msf_bwd(
    gs,
    gm,
    gv,
    x,
    kept,
    v0,
    lengths,
    rate_tensor,
    rate,
    scale,
    charge,
    thresholds,
    v_reset,
    reset,
    detach,
    surrogate,
    width,
    keep,
) -> Any:  # type: ignore[no-untyped-def]  # noqa: E501
    settings = MSFSettings(
        charge,
        tuple(thresholds),
        rate,
        scale,
        v_reset,
        reset,
        detach_reset=detach,
        surrogate=surrogate,
        width=width,
        keep=keep,
    )
    return msf.msf_backward(MSFGrads(gs, gm, gv), x, kept, v0, MSFParameters(rate_tensor), lengths, settings)


def pmsn_fwd(x, r, z, a, w, d, lengths, theta, reset, burst, fixed, keep) -> Any:  # type: ignore[no-untyped-def]
    settings = PMSNSettings(theta, reset, burst, fixed, keep_drive=keep)
    s, y, last = pmsn.pmsn_forward(x, PMSNState(r, z), PMSNWeights(a, w, d), lengths, settings)
    return s, y, *last


def pmsn_bwd(
    gs,
    gy,
    gr,
    gz,
    x,
    y,
    r,
    z,
    a,
    w,
    d,
    lengths,
    theta,
    reset,
    burst,
    fixed,
    surrogate,
    width,
    state_grad=True,
) -> Any:  # type: ignore[no-untyped-def]  # noqa: E501
    settings = PMSNSettings(theta, reset, burst, fixed, surrogate, width)
    grads = PMSNGrads(gs, gy, None, gr, gz)
    gx, state, weights = pmsn.pmsn_backward(
        grads, x, y, PMSNState(r, z), PMSNWeights(a, w, d), lengths, settings, state_grad
    )
    return gx, *state, *weights
