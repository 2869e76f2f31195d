"""The gradients of PMSN's weights: a walk forward that gathers sums, and a kernel that adds them up.

The sensitivities p = dz/de need no stored state: p <- p + (e p + z), with z before its own step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .modes import THETA, P, Q, advance, clean_state, drive, pairs, piece
from .soma import drive_gradient

COUNTS = ["steps", "leads", "channels", "positions", "x_step", "gs_step", "gy_step", "gm_step"]
COUNTS += ["rows", "span", "chunks"]


@triton.jit
def store_sums(
    partial,
    row,
    column,
    columns,
    sums,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add a tile [MODES, HIGH * WIDE] over HIGH, into ``row`` and on of ``partial`` [.., columns]."""
    mode = tl.arange(0, MODES)[:, None]
    total = tl.sum(tl.reshape(sums, (MODES, HIGH, WIDE)), axis=1)
    at = partial + (row + mode) * columns + column[None, :]
    tl.store(at, total, mask=(mode < COUNT) & (column < columns)[None, :])


@triton.jit(do_not_specialize=COUNTS)
def pmsn_gather(
    gs_seq,
    gy_seq,
    gm_seq,
    gz,
    x_seq,
    r0,
    z0,
    e,
    w,
    d,
    lengths,
    numbers,
    p0,
    lost,
    g_seq,
    partial,
    steps,
    leads,
    channels,
    positions,
    x_step,
    gs_step,
    gy_step,
    gm_step,
    rows,
    span,
    chunks,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    RESET: tl.constexpr,
    BURST: tl.constexpr,
    SURROGATE: tl.constexpr,
    FUSED: tl.constexpr,
    CHUNKED: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The sums for the weights from ``g_seq``, the gradients of the drives; with FUSED they are made here too.

    A program takes WIDE columns (c, k) by HIGH values of l, and goes on to the next HIGH until ``rows`` programs have
    shared all l: what it adds is in ``partial`` [rows, 4 * COUNT + 1, C*K] (de re, im, dw re, im of each mode; dd), in
    an order that depends on the shape alone. With CHUNKED a chunk of an l is an l of its own: ``z0`` and ``p0`` are
    what the chunks begin with, ``lost`` the step from which on a lane is NaN.
    """
    columns = tl.cast(channels, tl.int64) * positions  # products beyond 2**31
    lanes = leads * columns
    row = tl.program_id(1)
    place = tl.arange(0, HIGH * WIDE)
    column = tl.program_id(0).to(tl.int64) * WIDE + place % WIDE
    c = column // positions
    near = column < columns
    er, ei = pairs(e, c, near, -1.0, COUNT, MODES)
    wr, wi = pairs(w, c, near, 0.0, COUNT, MODES)
    gain = tl.load(d + c, mask=near, other=0)
    theta = tl.load(numbers + THETA)
    p = tl.load(numbers + P)
    q = tl.load(numbers + Q)
    # sum g p, sum g z, sum g x, and what reaches e through the last state
    gpr = tl.zeros_like(er)
    gpi = tl.zeros_like(er)
    gzr = tl.zeros_like(er)
    gzi = tl.zeros_like(er)
    gx = tl.zeros_like(gain)
    ger = tl.zeros_like(er)
    gei = tl.zeros_like(er)
    for top in range(row * HIGH, leads * chunks, rows * HIGH):
        l = top + place // WIDE
        inside = near & (l < leads * chunks)
        v = tl.cast(l, tl.int64) * columns + column
        lane, begin, own = piece(v, inside, lengths, steps, lanes, columns, span, CHUNKED)
        zr, zi = pairs(z0, v, inside, 0.0, COUNT, MODES)
        zr, zi, poison = clean_state(zr, zi)
        pr = tl.zeros_like(er)
        pi = tl.zeros_like(er)
        if CHUNKED:
            pr, pi = pairs(p0, v, inside, 0.0, COUNT, MODES)
            live = tl.load(lost + lane, mask=inside, other=0) - begin
        r = tl.load(r0 + lane, mask=inside, other=0)
        for t in tl.range(0, span, num_stages=STAGES):
            runs = inside & (t < own)
            now = begin + t
            x = tl.load(x_seq + now * x_step + lane, mask=runs, other=0).to(gain.dtype)
            poison += x - x
            x = tl.where(x - x == 0.0, x, 0.0)
            next_pr, next_pi = advance(pr, pi, er, ei, zr, zi)
            next_zr, next_zi = advance(zr, zi, er, ei, x[None, :], None)
            at = g_seq + now * lanes + lane
            if FUSED:
                gs = tl.load(gs_seq + now * gs_step + lane, mask=runs, other=0).to(gain.dtype)
                gm = None
                if gm_seq is not None:
                    gm = tl.load(gm_seq + now * gm_step + lane, mask=runs, other=0).to(gain.dtype)
                gy = None
                if gy_seq is not None:
                    gy = tl.load(gy_seq + now * gy_step + lane, mask=runs, other=0).to(gain.dtype)
                y = drive(next_zr, next_zi, wr, wi, gain, x) + poison
                g, r = drive_gradient(RESET, BURST, SURROGATE, gs, gm, gy, y, r, theta, p, q)
                tl.store(at, g, mask=runs)
            else:
                g = tl.load(at, mask=runs, other=0)
            good = runs & (poison == 0.0)
            if CHUNKED:
                good = runs & (t < live)
            g = tl.where(good, g, 0.0)
            gpr = tl.fma(g[None, :], next_pr, gpr)
            gpi = tl.fma(g[None, :], next_pi, gpi)
            gzr = tl.fma(g[None, :], next_zr, gzr)
            gzi = tl.fma(g[None, :], next_zi, gzi)
            gx = tl.fma(g, x, gx)
            if CHUNKED or lengths is not None:
                next_pr = tl.where(runs[None, :], next_pr, pr)
                next_pi = tl.where(runs[None, :], next_pi, pi)
                next_zr = tl.where(runs[None, :], next_zr, zr)
                next_zi = tl.where(runs[None, :], next_zi, zi)
            pr = next_pr
            pi = next_pi
            zr = next_zr
            zi = next_zi
        if gz is not None:
            ends = inside & (begin + span >= steps)
            er_end, ei_end = pairs(gz, lane, ends, 0.0, COUNT, MODES)
            ger += er_end * pr + ei_end * pi
            gei += ei_end * pr - er_end * pi
    ger += wr * gpr - wi * gpi
    gei -= wr * gpi + wi * gpr
    wide = tl.program_id(0).to(tl.int64) * WIDE + tl.arange(0, WIDE)
    first = row * (4 * COUNT + 1)
    if COUNT > 0:
        store_sums(partial, first, wide, columns, ger, COUNT, MODES, HIGH, WIDE)
        store_sums(partial, first + COUNT, wide, columns, gei, COUNT, MODES, HIGH, WIDE)
        store_sums(partial, first + 2 * COUNT, wide, columns, gzr, COUNT, MODES, HIGH, WIDE)
        store_sums(partial, first + 3 * COUNT, wide, columns, -gzi, COUNT, MODES, HIGH, WIDE)
    store_sums(partial, first + 4 * COUNT, wide, columns, gx[None, :], 1, 1, HIGH, WIDE)


@triton.jit(do_not_specialize=["rows", "channels", "positions"])
def pmsn_weights(partial, ge, gw, gd, rows, channels, positions, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """``partial`` [rows, 4 * COUNT + 1, C, K] -> ``ge``, ``gw`` [C, COUNT] complex, ``gd`` [C]; a program for each
    channel and sum. In double, and in an order that depends on the shape alone.
    """
    c = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1)
    positions = tl.cast(positions, tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, rows * positions, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at = (i // positions * (4 * COUNT + 1) + n) * channels + c
        sums = tl.load(partial + at * positions + i % positions, mask=i < rows * positions, other=0)
        total += sums.to(tl.float64)
    value = tl.sum(total, axis=0).to(gd.dtype.element_ty)
    if n == 4 * COUNT:
        tl.store(gd + c, value)
    elif COUNT > 0:
        at = 2 * (c * COUNT + n % COUNT) + n // COUNT % 2
        if n < 2 * COUNT:
            tl.store(ge + at, value)
        else:
            tl.store(gw + at, value)
