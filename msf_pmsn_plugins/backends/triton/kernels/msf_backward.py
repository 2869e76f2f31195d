"""The adjoint of MSF over all time steps: a program owns BLOCK neighbouring lanes."""

from __future__ import annotations

import triton
import triton.language as tl

from .charges import charge_backward, factor, rate_gradient
from .lanes import AMOUNT, INPUT_SCALE, RATE, V_RESET, P, Q, count, number, threshold, thresholds, valid_steps
from .resets import after_reset, kept_by_reset, through_spikes
from .surrogates import slope


@triton.jit
def summed_slope(
    SURROGATE: tl.constexpr, m, theta0, theta1, theta2, theta3, numbers, first, p, q, LEVELS: tl.constexpr
):
    """The slope at the first threshold, and the sum over all."""
    at_first = slope(SURROGATE, m - theta0, p, q)
    total = at_first
    if LEVELS > 1:
        total += slope(SURROGATE, m - theta1, p, q)
    if LEVELS > 2:
        total += slope(SURROGATE, m - theta2, p, q)
    if LEVELS > 3:
        total += slope(SURROGATE, m - theta3, p, q)
    for d in range(4, LEVELS):
        total += slope(SURROGATE, m - threshold(numbers, d, first), p, q)
    return at_first, total


@triton.jit
def height(code, q, LEVELS: tl.constexpr):
    """The rectangle's height ``q`` for each window of a kept byte, added one by one: the bits of the sum above."""
    inside = code & 127
    total = tl.where(inside > 0, q, 0.0)
    if LEVELS <= 8:  # without a loop inside, the loop over time reads ahead
        for d in tl.static_range(1, LEVELS):
            total += tl.where(inside > d, q, 0.0)
    else:
        for d in range(1, LEVELS):
            total += tl.where(inside > d, q, 0.0)
    return total


@triton.jit(do_not_specialize=["steps", "sample"])
def msf_backward(
    gs_seq,
    gm_seq,
    gv,
    x_seq,
    total_seq,
    first_seq,
    kept,
    v0,
    lengths,
    rates,
    firsts,
    resets,
    numbers,
    gx_seq,
    gv0,
    grate,
    gfirst,
    greset,
    steps,
    lanes,
    sample,
    gs_step,
    gm_step,
    x_step,
    total_step,
    first_slope_step,
    CHARGE: tl.constexpr,
    RESET: tl.constexpr,
    DELAY: tl.constexpr,
    LEVELS: tl.constexpr,
    KEEP: tl.constexpr,
    SURROGATE: tl.constexpr,
    DETACH: tl.constexpr,
    RATE_STEP: tl.constexpr,
    FIRST_STEP: tl.constexpr,
    RESET_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of ``s_seq``, of the membranes (``gm_seq``) and of ``v_last`` (``gv``) -> ``gx_seq``, ``gv0`` and those
    of each lane's rate, first threshold and amount, summed over the steps; any of them None where nobody asks.

    ``x_seq`` is read for ``grate`` only. ``total_seq`` and ``first_seq`` are the sum of all slopes and the one at the
    first threshold where they are given; ``SURROGATE`` is not used then.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    lanes = tl.cast(lanes, tl.int64)
    own_steps = valid_steps(lengths, lane // sample, inside, steps)
    rate = number(rates, RATE_STEP, numbers, RATE, lane, inside)
    if rates is not None:
        rate = factor(CHARGE, rate)
    first = None
    if firsts is not None:
        first = number(firsts, FIRST_STEP, numbers, 0, lane, inside)
    amount = number(resets, RESET_STEP, numbers, AMOUNT, lane, inside)
    scale = tl.load(numbers + INPUT_SCALE)
    r = tl.load(numbers + V_RESET)
    p = tl.load(numbers + P)
    q = tl.load(numbers + Q)
    theta0, theta1, theta2, theta3 = thresholds(numbers, first)

    BEFORE: tl.constexpr = DELAY or grate is not None  # the step before is looked at
    start = tl.load(v0 + lane, mask=inside, other=0)
    g = tl.zeros_like(start)
    if gv is not None:
        g = tl.load(gv + lane, mask=inside, other=0)
    g_rate = tl.zeros_like(start)
    g_first = tl.zeros_like(start)
    g_reset = tl.zeros_like(start)
    if KEEP == "code":
        start = tl.where(start >= theta0, 128.0, 0.0)
    for i in tl.range(0, steps, num_stages=STAGES):
        t = tl.cast(steps - 1 - i, tl.int64)
        k = tl.load(kept + t * lanes + lane, mask=inside, other=0)
        gs = tl.load(gs_seq + t * tl.cast(gs_step, tl.int64) + lane, mask=inside, other=0).to(g.dtype)
        if BEFORE:
            before = tl.load(kept + (t - 1) * lanes + lane, mask=inside & (t > 0), other=0).to(g.dtype)
            before = tl.where(t > 0, before, start)
        if KEEP == "code":
            m = tl.zeros_like(g)  # what looks at it is never asked for with a byte
            fired = k >= 128
            total = height(k, q, LEVELS)
            at_first = total
        else:
            m = k
            fired = m >= theta0
            if total_seq is not None:
                total = tl.load(total_seq + t * tl.cast(total_step, tl.int64) + lane, mask=inside, other=0)
                at_first = tl.load(
                    first_seq + t * tl.cast(first_slope_step, tl.int64) + lane, mask=inside, other=0
                )
            else:
                at_first, total = summed_slope(
                    SURROGATE, m, theta0, theta1, theta2, theta3, numbers, first, p, q, LEVELS
                )

        if DETACH or DELAY:
            spikes = gs * total
        else:
            spikes = through_spikes(RESET, LEVELS, gs, g, m, at_first, total, r, amount)
        if DELAY:
            gm = spikes + g
        else:
            gm = spikes + kept_by_reset(RESET, g, fired)
        if gm_seq is not None:
            gm += tl.load(gm_seq + t * tl.cast(gm_step, tl.int64) + lane, mask=inside, other=0)
        if lengths is not None:
            runs = t < own_steps
        else:
            runs = inside

        if grate is not None:
            x = tl.load(x_seq + t * tl.cast(x_step, tl.int64) + lane, mask=inside, other=0).to(g.dtype)
            s_before = count(before, theta0, theta1, theta2, theta3, numbers, first, LEVELS)
            reset = after_reset(RESET, before, before >= theta0, s_before, r, amount)
            if not DELAY:
                reset = tl.where(t > 0, reset, before)
            elif RESET == "soft":
                reset = before
            g_rate += tl.where(runs, rate_gradient(CHARGE, gm, x, reset, r), 0.0)
        if gfirst is not None:
            g_first -= tl.where(runs, spikes, 0.0)
        if greset is not None:
            if DELAY:
                subtracted = count(before, theta0, theta1, theta2, theta3, numbers, first, LEVELS) * gm
            else:
                subtracted = count(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS) * g
            g_reset -= tl.where(runs, subtracted, 0.0)

        gx, g_before = charge_backward(CHARGE, gm, rate, scale)
        if DELAY:
            if KEEP == "code":
                g_before = kept_by_reset(RESET, g_before, before >= 128)
            else:
                g_before = kept_by_reset(RESET, g_before, before >= theta0)
        if lengths is not None:
            gx = tl.where(runs, gx, 0.0)
            g_before = tl.where(runs, g_before, g)
        tl.store(gx_seq + t * lanes + lane, gx.to(gx_seq.dtype.element_ty), mask=inside)
        g = g_before
    tl.store(gv0 + lane, g, mask=inside)
    if grate is not None:
        tl.store(grate + lane, g_rate, mask=inside)
    if gfirst is not None:
        tl.store(gfirst + lane, g_first, mask=inside)
    if greset is not None:
        tl.store(greset + lane, g_reset, mask=inside)
