"""The gradients of PMSN's drives in a walk of their own: where they must be known before those of the weights."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import divide
from .modes import THETA, P, Q, advance, clean_state, drive, pairs, piece
from .soma import drive_gradient

COUNTS = ["steps", "lanes", "channels", "positions", "x_step", "gs_step", "gy_step", "gm_step"]


@triton.jit
def accumulate(g_seq, gy_seq, gr, gr0, lane, inside, own, steps, lanes, gy_step, theta):
    """The gradients of the membranes in ``g_seq`` become those of the drives, each of which moved all later membranes;
    ``gr``, that of the last residual, may be None.
    """
    later = tl.zeros_like(theta + lane.to(theta.dtype))
    if gr is not None:
        later = divide(tl.load(gr + lane, mask=inside, other=0), theta)
    for i in range(steps):
        t = tl.cast(steps - 1 - i, tl.int64)
        runs = inside & (t < own)
        later += tl.load(g_seq + t * tl.cast(lanes, tl.int64) + lane, mask=runs, other=0)
        g = later
        if gy_seq is not None:
            g += tl.load(gy_seq + t * tl.cast(gy_step, tl.int64) + lane, mask=runs, other=0).to(g.dtype)
        tl.store(g_seq + t * tl.cast(lanes, tl.int64) + lane, g, mask=runs)
    tl.store(gr0 + lane, theta * later, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def pmsn_drive(
    gs_seq,
    gy_seq,
    gm_seq,
    gr,
    x_seq,
    r0,
    z0,
    e,
    w,
    d,
    lengths,
    numbers,
    g_seq,
    gr0,
    steps,
    lanes,
    channels,
    positions,
    x_step,
    gs_step,
    gy_step,
    gm_step,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    RESET: tl.constexpr,
    BURST: tl.constexpr,
    SURROGATE: tl.constexpr,
    CHUNKED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of spikes, drives (``gy_seq``), membranes (``gm_seq``) and of the last residual (``gr``), all but the
    first possibly None -> ``g_seq``, and with the reset "cumulative" ``gr0``.

    With CHUNKED ``g_seq`` holds the drives at first, and x and the modes are not looked at.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    channels = tl.cast(channels, tl.int64)  # products beyond 2**31
    c = lane // positions % channels
    lane, _, own = piece(lane, inside, lengths, steps, lanes, channels * positions, steps, False)
    theta = tl.load(numbers + THETA)
    p = tl.load(numbers + P)
    q = tl.load(numbers + Q)
    r = tl.load(r0 + lane, mask=inside, other=0)
    if not CHUNKED:
        er, ei = pairs(e, c, inside, -1.0, COUNT, MODES)
        wr, wi = pairs(w, c, inside, 0.0, COUNT, MODES)
        gain = tl.load(d + c, mask=inside, other=0)
        zr, zi = pairs(z0, lane, inside, 0.0, COUNT, MODES)
        zr, zi, poison = clean_state(zr, zi)
    for t in tl.range(0, steps, num_stages=STAGES):
        runs = inside & (t < own)
        at = g_seq + t * tl.cast(lanes, tl.int64) + lane
        if CHUNKED:
            y = tl.load(at, mask=runs, other=0)
        else:
            x = tl.load(x_seq + t * tl.cast(x_step, tl.int64) + lane, mask=runs, other=0).to(r.dtype)
            poison += x - x
            x = tl.where(x - x == 0.0, x, 0.0)
            zr, zi = advance(zr, zi, er, ei, x[None, :], None)  # beyond its steps nobody looks at it
            y = drive(zr, zi, wr, wi, gain, x) + poison
        gs = tl.load(gs_seq + t * tl.cast(gs_step, tl.int64) + lane, mask=runs, other=0).to(r.dtype)
        gm = None
        if gm_seq is not None:
            gm = tl.load(gm_seq + t * tl.cast(gm_step, tl.int64) + lane, mask=runs, other=0).to(r.dtype)
        gy = None
        if gy_seq is not None:
            gy = tl.load(gy_seq + t * tl.cast(gy_step, tl.int64) + lane, mask=runs, other=0).to(r.dtype)
        g, r = drive_gradient(RESET, BURST, SURROGATE, gs, gm, gy, y, r, theta, p, q)
        tl.store(at, g, mask=runs)
    if RESET == "cumulative":
        tl.debug_barrier()  # another thread may read what one has written
        accumulate(g_seq, gy_seq, gr, gr0, lane, inside, own, steps, lanes, gy_step, theta)
