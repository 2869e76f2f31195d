"""PMSN back through time: gradients of the drives to those of the input and of the state."""

from __future__ import annotations

import triton
import triton.language as tl

from .modes import pairs, piece, save_pairs


@triton.jit(do_not_specialize=["steps", "lanes", "channels", "positions", "span", "chunks"])
def pmsn_adjoint(
    g_seq,
    gz,
    e,
    w,
    d,
    lengths,
    gx_seq,
    gz0,
    steps,
    lanes,
    channels,
    positions,
    span,
    chunks,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    CHUNKED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``g_seq`` -> ``gx_seq``, which may be the same memory; ``gz``, the gradient of the last state -> ``gz0``, that of
    the first. All but the first may be None. With CHUNKED each chunk is a lane.
    """
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.cast(lanes, tl.int64)
    channels = tl.cast(channels, tl.int64)  # products beyond 2**31
    inside = v < lanes * chunks
    lane, begin, own = piece(v, inside, lengths, steps, lanes, channels * positions, span, CHUNKED)
    c = lane // positions % channels
    er, ei = pairs(e, c, inside, -1.0, COUNT, MODES)
    wr, wi = pairs(w, c, inside, 0.0, COUNT, MODES)
    gain = tl.load(d + c, mask=inside, other=0)
    after_r = tl.zeros_like(er)
    after_i = tl.zeros_like(er)
    if gz is not None:
        after_r, after_i = pairs(gz, v, inside, 0.0, COUNT, MODES)
    for i in tl.range(0, span, num_stages=STAGES):
        t = tl.cast(span - 1 - i, tl.int64)
        runs = inside & (t < own)
        at = (begin + t) * lanes + lane
        g = tl.load(g_seq + at, mask=runs, other=0)
        re = tl.fma(wr, g[None, :], after_r)
        im = tl.fma(-wi, g[None, :], after_i)
        if COUNT < MODES:  # an infinite gradient times a weight that is not there
            re = tl.where(tl.arange(0, MODES)[:, None] < COUNT, re, 0.0)
        gx = gain * g + tl.sum(re, axis=0)
        # times 1 + conj(e)
        next_r = re + tl.fma(er, re, ei * im)
        next_i = im + tl.fma(er, im, -(ei * re))
        if CHUNKED or lengths is not None:
            gx = tl.where(runs, gx, 0.0)
            next_r = tl.where(runs[None, :], next_r, after_r)
            next_i = tl.where(runs[None, :], next_i, after_i)
        after_r = next_r
        after_i = next_i
        if gx_seq is not None:
            tl.store(gx_seq + at, gx.to(gx_seq.dtype.element_ty), mask=inside & (begin + t < steps))
    if gz0 is not None:
        save_pairs(gz0, v, inside, after_r, after_i, COUNT, MODES)
