"""PMSN over all time steps: a program owns BLOCK lanes and keeps their modes in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from .modes import THETA, advance, drive, pairs, piece, save_pairs
from .soma import soma

COUNTS = ["steps", "lanes", "channels", "positions", "x_step"]


@triton.jit(do_not_specialize=COUNTS)
def pmsn_forward(
    x_seq,
    r0,
    z0,
    e,
    w,
    d,
    lengths,
    numbers,
    s_seq,
    y_seq,
    m_seq,
    r_seq,
    r_last,
    z_last,
    steps,
    lanes,
    channels,
    positions,
    x_step,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    RESET: tl.constexpr,
    BURST: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``x_seq`` -> spikes ``s_seq``, drives ``y_seq``, membranes ``m_seq`` and residuals ``r_seq`` (None: nobody asks),
    last r and z.

    ``lengths``: one for each leading index l, or None.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    channels = tl.cast(channels, tl.int64)  # products beyond 2**31
    c = lane // positions % channels
    lane, _, own = piece(lane, inside, lengths, steps, lanes, channels * positions, steps, False)
    er, ei = pairs(e, c, inside, -1.0, COUNT, MODES)
    wr, wi = pairs(w, c, inside, 0.0, COUNT, MODES)
    gain = tl.load(d + c, mask=inside, other=0)
    theta = tl.load(numbers + THETA)
    zr, zi = pairs(z0, lane, inside, 0.0, COUNT, MODES)
    r = tl.load(r0 + lane, mask=inside, other=0)
    for t in tl.range(0, steps, num_stages=STAGES):
        x = tl.load(x_seq + t * tl.cast(x_step, tl.int64) + lane, mask=inside, other=0).to(r.dtype)
        x = tl.where(x - x == 0.0, x, x - x)  # a lane is NaN from its first NaN or inf on
        next_zr, next_zi = advance(zr, zi, er, ei, x[None, :], None)
        y = drive(next_zr, next_zi, wr, wi, gain, x)
        s, v, next_r = soma(RESET, BURST, y, r, theta)
        m = v * theta
        if lengths is not None:
            runs = t < own
            next_zr = tl.where(runs[None, :], next_zr, zr)
            next_zi = tl.where(runs[None, :], next_zi, zi)
            next_r = tl.where(runs, next_r, r)
            s = tl.where(runs, s, 0.0)
            y = tl.where(runs, y, 0.0)
            m = tl.where(runs, m, 0.0)
        zr = next_zr
        zi = next_zi
        r = next_r
        at = t * tl.cast(lanes, tl.int64) + lane
        tl.store(s_seq + at, s.to(s_seq.dtype.element_ty), mask=inside)
        if y_seq is not None:
            tl.store(y_seq + at, y.to(y_seq.dtype.element_ty), mask=inside)
        if m_seq is not None:
            tl.store(m_seq + at, m.to(m_seq.dtype.element_ty), mask=inside)
        if r_seq is not None:
            tl.store(r_seq + at, r, mask=inside)
    tl.store(r_last + lane, r, mask=inside)
    save_pairs(z_last, lane, inside, zr, zi, COUNT, MODES)


@triton.jit(do_not_specialize=["steps", "lanes", "columns"])
def pmsn_soma(
    y_seq,
    r0,
    lengths,
    numbers,
    s_seq,
    m_seq,
    r_seq,
    r_last,
    steps,
    lanes,
    columns,
    RESET: tl.constexpr,
    BURST: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The soma alone, for drives made in chunks: ``y_seq`` -> ``s_seq``, ``m_seq`` and ``r_seq`` (may be None), last r.

    ``y_seq`` becomes 0 beyond the lengths.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    lane, _, own = piece(lane, inside, lengths, steps, lanes, columns, steps, False)
    theta = tl.load(numbers + THETA)
    r = tl.load(r0 + lane, mask=inside, other=0)
    for t in tl.range(0, steps, num_stages=STAGES):
        at = t * tl.cast(lanes, tl.int64) + lane
        runs = inside & (t < own)
        y = tl.load(y_seq + at, mask=runs, other=0)
        s, v, after = soma(RESET, BURST, y, r, theta)
        r = tl.where(runs, after, r)
        if lengths is not None:
            tl.store(y_seq + at, tl.where(runs, y, 0.0), mask=inside)
        tl.store(s_seq + at, tl.where(runs, s, 0.0).to(s_seq.dtype.element_ty), mask=inside)
        if m_seq is not None:
            tl.store(m_seq + at, tl.where(runs, v * theta, 0.0).to(m_seq.dtype.element_ty), mask=inside)
        if r_seq is not None:
            tl.store(r_seq + at, r, mask=inside)
    tl.store(r_last + lane, r, mask=inside)
