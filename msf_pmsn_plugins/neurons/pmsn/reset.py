"""The parallel reset for any non-leaky compartment, and PMSN's variant with the mean input over time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...lengths import live_steps
from ...settings import PMSNSettings
from ...surrogate import FireFunction, Surrogate, as_surrogate, gives_slopes
from ...tensors import PMSNState, PMSNWeights, floating, state_dtype
from ..base import first_step, paired_dtype
from ..layout import memory_order, owned, permuted, reshaped
from .op import pmsn
from .step import pmsn_step, require_known

__all__ = ["global_drive", "hidden_states", "parallel_reset"]


def parallel_reset(
    y_seq: Tensor,
    r: Tensor | None = None,
    settings: PMSNSettings = PMSNSettings(),  # noqa: B008  # immutable
    *,
    surrogate: str | Surrogate | FireFunction | None = None,
    lengths: Tensor | None = None,
    membrane: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The parallel reset of PMSN for any non-leaky compartment (equations 16 to 18): drives in, spikes out.

    ``v = r + max(y, 0)/v_threshold``, ``s = [v >= 1]``, ``r = v - floor(v)``: all steps at once, because the whole
    thresholds removed up to a step are the floor of a prefix sum. It holds for drives that are known in advance,
    a compartment without leak, and a reset that removes all whole thresholds; negative drives are clamped.

    Args:
        y_seq: drives in volts, [T, N, *], of any float dtype; integers are taken as torch's default one.
        r: residual in units of the threshold, [N, *], float64 for float64 drives, else float32; None is rest.
        settings: threshold, reset, burst and surrogate.
        surrogate: over ``v - v_threshold`` in volts, in place of the one that the settings name.
        lengths, backend: as in :func:`pmsn`.
        membrane: return the membranes.

    Returns:
        spikes [T, N, *], last ``r`` (with ``settings.keep_residual`` all, [T, N, *]), membranes before reset in volts
        [T, N, *] or None.
    """
    require_known(settings)
    y_seq = floating(y_seq)
    r = torch.zeros_like(first_step(y_seq), dtype=state_dtype(y_seq.dtype)) if r is None else r
    none = r.new_empty(0, dtype=paired_dtype(r.dtype))
    surrogate = None if surrogate is None else as_surrogate(surrogate)
    if surrogate is not None and not gives_slopes(surrogate):
        weights = PMSNWeights(none, none, r.new_ones(()))
        return _loop(
            y_seq, PMSNState(r, none.expand(*r.shape, 0)), weights, settings, surrogate, lengths, membrane
        )
    order = memory_order(y_seq, 2)  # lanes are all alike: in that of memory, and nothing is copied
    y_seq, r = permuted(y_seq, order), permuted(r, order)
    shape = r.shape
    lanes = (shape[0], 1, math.prod(shape[1:]))
    s_seq, _y_seq, m_seq, (r_last, _z) = pmsn(
        y_seq.reshape(y_seq.shape[0], *lanes),
        PMSNState(r.reshape(lanes), none.expand(*lanes, 0)),
        PMSNWeights(none.expand(1, 0), none.expand(1, 0), r.new_ones(1)),
        settings.but(keep_drive=False, keep_membrane=membrane),
        surrogate=surrogate,
        lengths=lengths,
        backend=backend,
    )
    s_seq = permuted(reshaped(s_seq, y_seq.shape), order, back=True)
    m_seq = None if m_seq is None else permuted(owned(m_seq.reshape(y_seq.shape)), order, back=True)
    r_last = reshaped(r_last, y_seq.shape if settings.keep_residual else shape)
    return s_seq, permuted(r_last, order, back=True), m_seq


def _loop(
    y_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    settings: PMSNSettings,
    surrogate: FireFunction,
    lengths: Tensor | None,
    membrane: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Step by step, for a soft firing function."""
    live_seq = None if lengths is None else live_steps(lengths, y_seq)
    s_seq, m_seq, r_seq = [], [], []
    for t, y in enumerate(y_seq.unbind(0)):
        s, after, m = pmsn_step(y, state, weights, settings, surrogate)
        r = after.r
        if live_seq is not None:
            r = torch.where(live_seq[t], r, state.r)
            s, m = torch.where(live_seq[t], s, 0.0), torch.where(live_seq[t], m, 0.0)
        state = PMSNState(r, state.z)
        s_seq.append(s)
        m_seq.append(m)
        r_seq.append(r)
    if not s_seq:
        none = y_seq.new_empty(y_seq.shape, dtype=state.r.dtype)
        return (
            torch.empty_like(y_seq),
            none if settings.keep_residual else state.r,
            none if membrane else None,
        )
    r_last = torch.stack(r_seq) if settings.keep_residual else state.r
    return torch.stack(s_seq), r_last, torch.stack(m_seq) if membrane else None


def global_drive(x_seq: Tensor, weights: PMSNWeights, lengths: Tensor | None, backend: str) -> Tensor:
    """The drive [T, L, C, K] with the mean input in the hidden compartments: their step response times the mean."""
    steps, _lead, channels, _tail = x_seq.shape
    if lengths is None:
        mean = x_seq.mean(0)
    else:
        x_seq = torch.where(live_steps(lengths, x_seq), x_seq, 0.0)  # padding may hold anything
        mean = x_seq.sum(0) / lengths.clamp(min=1).to(x_seq.dtype).reshape(-1, 1, 1)
    e, w, d = weights
    rest = e.new_zeros(1, channels, 1, e.shape[1])
    _s, response, _m, _state = pmsn(
        x_seq.new_ones(steps, 1, channels, 1),
        PMSNState(rest.real.sum(-1), rest),
        PMSNWeights(e, w, torch.zeros_like(d)),
        PMSNSettings(reset_mode="none", keep_drive=True),
        backend=backend,
    )
    assert response is not None
    # A lane lost to NaN keeps out of the gradients that all share: 0 times NaN would be one.
    lost = ~torch.isfinite(mean)
    mean, x_clean = torch.where(lost, 0.0, mean), torch.where(lost, 0.0, x_seq)
    return torch.where(lost, x_seq + math.nan, response * mean + d.reshape(-1, 1) * x_clean)


def hidden_states(x_seq: Tensor, z: Tensor, e: Tensor, lengths: Tensor | None, backend: str) -> Tensor:
    """The hidden state after each step, complex [T, L, C, K, modes], for an input [T, L, C, K]: the drives of somas
    each of which reads one part of one mode. At padded steps it is 0.
    """
    steps, lead, channels, tail = x_seq.shape
    modes = e.shape[1]
    size = channels * modes * 2
    read = torch.tensor([1, -1j], dtype=e.dtype, device=e.device)  # Re z, Im z
    alone = z.permute(0, 1, 3, 2).repeat_interleave(2, 2).reshape(lead, size, tail, 1)
    _s, parts, _m, _state = pmsn(
        x_seq.unsqueeze(3).expand(-1, -1, -1, 2 * modes, -1).reshape(steps, lead, size, tail),
        PMSNState(x_seq.new_zeros(lead, size, tail), alone),
        PMSNWeights(
            e.reshape(-1, 1).repeat_interleave(2, 0),
            read.repeat(channels * modes).unsqueeze(1),
            x_seq.new_zeros(size),
        ),
        PMSNSettings(reset_mode="none", keep_drive=True),
        lengths=lengths,
        backend=backend,
    )
    assert parts is not None
    parts = parts.reshape(steps, lead, channels, modes, 2, tail).permute(0, 1, 2, 5, 3, 4)
    # By pairs: torch before 2.7 asks for even strides, also of axes of one element, where any stride is contiguous.
    return torch.view_as_complex(parts.reshape(-1, 2)).reshape(parts.shape[:-1])
