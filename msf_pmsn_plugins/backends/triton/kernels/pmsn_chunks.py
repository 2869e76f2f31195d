"""PMSN with time in chunks, for few lanes and many steps.

A lane is linear in its state but for the soma, so its chunks of ``span`` steps can be walked at once, each as a lane of
its own, v = chunk * lanes + lane: from zero, which says how each chunk moves the state (``pmsn_carry``), then from the
state that each begins with, for the drives. Only the soma walks all steps, with next to nothing to do in each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .modes import advance, clean_state, drive, pairs, piece, save_pairs

COUNTS = ["steps", "lanes", "channels", "positions", "x_step", "span", "chunks"]


@triton.jit(do_not_specialize=COUNTS)
def pmsn_chunk(
    x_seq,
    starts,
    e,
    w,
    d,
    lengths,
    ends,
    p_ends,
    lost,
    y_seq,
    steps,
    lanes,
    channels,
    positions,
    x_step,
    span,
    chunks,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Without ``starts``: ``x_seq`` -> ``ends``, the state that each chunk ends with if it begins with 0. With them:
    -> ``y_seq``.

    BACKWARD also asks for p = dz/de, with ``starts`` -> ``p_ends``, and reads x cleaned of NaN and inf: without them
    the step of the first loss of each chunk -> ``lost``, or ``steps``; with them ``lost`` holds that of each lane.
    """
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.cast(lanes, tl.int64)
    channels = tl.cast(channels, tl.int64)  # products beyond 2**31
    inside = v < lanes * chunks
    lane, begin, own = piece(v, inside, lengths, steps, lanes, channels * positions, span, True)
    c = lane // positions % channels
    er, ei = pairs(e, c, inside, -1.0, COUNT, MODES)
    wr, wi = pairs(w, c, inside, 0.0, COUNT, MODES)
    gain = tl.load(d + c, mask=inside, other=0)
    zr = tl.zeros_like(er)
    zi = tl.zeros_like(er)
    if starts is not None:
        zr, zi = pairs(starts, v, inside, 0.0, COUNT, MODES)
    pr = tl.zeros_like(er)
    pi = tl.zeros_like(er)
    first_lost = v * 0 + steps
    gone = first_lost
    if BACKWARD and starts is not None:
        gone = tl.load(lost + lane, mask=inside, other=0)
    for t in tl.range(0, span, num_stages=STAGES):
        runs = inside & (t < own)
        now = begin + t
        x = tl.load(x_seq + now * x_step + lane, mask=runs, other=0).to(gain.dtype)
        good = x - x == 0.0
        if BACKWARD:
            first_lost = tl.where(good, first_lost, tl.minimum(first_lost, now))
            x = tl.where(good, x, 0.0)
            next_pr, next_pi = advance(pr, pi, er, ei, zr, zi)
            pr = tl.where(runs[None, :], next_pr, pr)
            pi = tl.where(runs[None, :], next_pi, pi)
        else:
            x = tl.where(good, x, x - x)
        next_zr, next_zi = advance(zr, zi, er, ei, x[None, :], None)
        zr = tl.where(runs[None, :], next_zr, zr)
        zi = tl.where(runs[None, :], next_zi, zi)
        if starts is not None:
            y = drive(zr, zi, wr, wi, gain, x)
            if BACKWARD:
                y = tl.where(now < gone, y, float("nan"))
            tl.store(y_seq + now * lanes + lane, y, mask=runs)
    if starts is None:
        save_pairs(ends, v, inside, zr, zi, COUNT, MODES)
        if BACKWARD:
            tl.store(lost + v, first_lost, mask=inside)
    elif BACKWARD:
        save_pairs(p_ends, v, inside, pr, pi, COUNT, MODES)


@triton.jit
def power(er, ei, n):
    """``(1 + e)**n - 1`` for n [1, BLOCK]: in double, it stands for as many roundings."""
    sr = 1.0 + er.to(tl.float64)
    si = ei.to(tl.float64)
    pr = tl.zeros_like(sr) + 1.0
    pi = tl.zeros_like(sr)
    left = tl.max(n, axis=1, keep_dims=True)  # the same for all: a loop needs one number
    bits = tl.sum(left, axis=1)
    bits = tl.sum(bits, axis=0)
    while bits > 0:
        odd = n % 2 == 1
        re = pr * sr - pi * si
        pi = tl.where(odd, pr * si + pi * sr, pi)
        pr = tl.where(odd, re, pr)
        re = sr * sr - si * si
        si = 2.0 * sr * si
        sr = re
        n = n // 2
        bits = bits // 2
    return (pr - 1.0).to(er.dtype), pi.to(er.dtype)


@triton.jit(do_not_specialize=["steps", "lanes", "channels", "positions", "span", "chunks"])
def pmsn_carry(
    parts,
    given,
    e,
    lengths,
    end,
    lost,
    steps,
    lanes,
    channels,
    positions,
    span,
    chunks,
    COUNT: tl.constexpr,
    MODES: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``parts``: what each chunk ends with if it begins with 0 -> what it begins with. The first begins with ``given``
    (None: 0), the last ends with ``end`` (may be None). BACK: against time and with conj(a), as gradients go.

    ``lost`` (may be None) of each chunk -> of each lane, at the places of the first chunk; a state ``given`` that is
    lost loses the lane at once.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lanes = tl.cast(lanes, tl.int64)
    channels = tl.cast(channels, tl.int64)  # products beyond 2**31
    inside = lane < lanes
    columns = channels * positions
    er, ei = pairs(e, lane // positions % channels, inside, -1.0, COUNT, MODES)
    zr = tl.zeros_like(er)
    zi = tl.zeros_like(er)
    if given is not None:
        zr, zi = pairs(given, lane, inside, 0.0, COUNT, MODES)
    if lost is not None:
        zr, zi, poison = clean_state(zr, zi)
        first_lost = tl.where(poison == 0.0, lane * 0 + steps, 0)
        for other in range(chunks):
            first_lost = tl.minimum(first_lost, tl.load(lost + other * lanes + lane, mask=inside, other=0))
        tl.store(lost + lane, first_lost, mask=inside)
    # Chunks are whole, or the last that a lane has, or empty.
    _, _, valid = piece(lane, inside, lengths, steps, lanes, columns, steps, False)
    valid += lane * 0
    whole_r, whole_i = power(er, ei, (lane * 0 + span)[None, :])
    rest_r, rest_i = power(er, ei, (valid % span)[None, :])
    for i in range(chunks):
        g = tl.cast(i, tl.int64)
        if BACK:
            g = tl.cast(chunks - 1 - i, tl.int64)
        own = valid - g * span
        full = (own >= span)[None, :]
        none = (own <= 0)[None, :]
        ar = tl.where(full, whole_r, tl.where(none, 0.0, rest_r))
        ai = tl.where(full, whole_i, tl.where(none, 0.0, rest_i))
        if BACK:
            ai = -ai
        v = g * lanes + lane
        part_r, part_i = pairs(parts, v, inside, 0.0, COUNT, MODES)
        tl.debug_barrier()  # another thread may write where one reads
        save_pairs(parts, v, inside, zr, zi, COUNT, MODES)
        zr, zi = advance(zr, zi, ar, ai, part_r, part_i)
    if end is not None:
        save_pairs(end, lane, inside, zr, zi, COUNT, MODES)
