"""The old signatures, until the ops call the new ones."""

from ..settings import MSFSettings, PMSNSettings
from ..tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights
from .numba import warm_up
from .numba.msf import msf_backward, msf_forward
from .numba.pmsn import pmsn_backward, pmsn_forward


def msf_fwd(x, v, lengths, rate_tensor, rate, scale, charge, thresholds, v_reset, reset_mode, width, keep):
    settings = MSFSettings(
        charge, tuple(thresholds), rate, scale, v_reset, reset_mode, thresholds[0], width=width, keep=keep
    )
    return msf_forward(x, v, MSFParameters(rate_tensor), lengths, settings)


def msf_bwd(
    gs, gm, gv, x, kept, v0, lengths, rate_tensor, rate, scale, charge, thresholds, v_reset, reset_mode,
    detach_reset, surrogate, width, keep,
):  # fmt: skip
    settings = MSFSettings(
        charge, tuple(thresholds), rate, scale, v_reset, reset_mode, thresholds[0], False, detach_reset,
        surrogate, width, keep,
    )  # fmt: skip
    return msf_backward(MSFGrads(gs, gm, gv), x, kept, v0, MSFParameters(rate_tensor), lengths, settings)


def pmsn_fwd(x, r, z, a, w, d, lengths, v_threshold, reset_mode, burst, fixed, keep):
    settings = PMSNSettings(v_threshold, reset_mode, burst, fixed, keep_drive=keep)
    s, y, state = pmsn_forward(x, PMSNState(r, z), PMSNWeights(a, w, d), lengths, settings)
    return s, y, *state


def pmsn_bwd(
    gs, gy, gr, gz, x, y, r, z, a, w, d, lengths, v_threshold, reset_mode, burst, fixed, surrogate, width,
    state_grad=True,
):  # fmt: skip
    settings = PMSNSettings(
        v_threshold, reset_mode, burst, fixed, surrogate, width, state_grad=state_grad
    )
    gx, state, weights = pmsn_backward(
        PMSNGrads(gs, gy, None, gr, gz), x, y, PMSNState(r, z), PMSNWeights(a, w, d), lengths, settings
    )
    return gx, *state, *weights
