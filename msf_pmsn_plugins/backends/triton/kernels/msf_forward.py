"""MSF over all time steps: a program owns BLOCK neighbouring lanes and keeps their membranes in registers.

Lanes are the elements of one step [N, *] in the order of memory. x and incoming gradients may have any distance between
steps, all other sequences are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .charges import charge, factor
from .lanes import AMOUNT, INPUT_SCALE, RATE, V_RESET, count, number, thresholds, valid_steps, windows
from .resets import after_reset


@triton.jit(do_not_specialize=["steps", "sample"])
def msf_forward(
    x_seq,
    v0,
    lengths,
    rates,
    firsts,
    resets,
    numbers,
    s_seq,
    kept,
    v_last,
    steps,
    lanes,
    sample,
    x_step,
    CHARGE: tl.constexpr,
    RESET: tl.constexpr,
    DELAY: tl.constexpr,
    RETAKE: tl.constexpr,
    LEVELS: tl.constexpr,
    KEEP: tl.constexpr,
    RATE_STEP: tl.constexpr,
    FIRST_STEP: tl.constexpr,
    RESET_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``x_seq`` -> counts ``s_seq``, ``kept``, ``v_last``.

    ``rates``, ``firsts``, ``resets``: the rate of the charge, the first threshold, the amount of a soft reset; None,
    one value (step 0), or one a lane (step 1). ``lengths``: one for each sample of ``sample`` lanes, or None. RETAKE:
    what a state still fires is subtracted first, undecayed.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    x_step = tl.cast(x_step, tl.int64)
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
    theta0, theta1, theta2, theta3 = thresholds(numbers, first)

    v = tl.load(v0 + lane, mask=inside, other=0)
    last = count(
        v, theta0, theta1, theta2, theta3, numbers, first, LEVELS
    )  # of the step before, for a delayed reset
    for t in tl.range(0, steps, num_stages=STAGES):
        x = tl.load(x_seq + t * x_step + lane, mask=inside, other=0).to(v.dtype)
        before = v
        if DELAY and RESET != "soft":
            before = after_reset(RESET, v, last > 0, last, r, amount)
        m = charge(CHARGE, x, before, rate, r, scale)
        if DELAY and RESET == "soft":
            m = after_reset(RESET, m, last > 0, last, r, amount)
        if RETAKE:
            taken = count(v, theta0, theta1, theta2, theta3, numbers, first, LEVELS)
            m = after_reset(RESET, m, taken > 0, taken, r, amount)
        s = count(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS)
        fired = m >= theta0
        after = m
        if not DELAY:
            if RETAKE:
                after = after_reset(RESET, m, s != taken, s - taken, r, amount)
            else:
                after = after_reset(RESET, m, fired, s, r, amount)
        k = m
        if KEEP == "code":
            k = windows(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS)
            k += tl.where(fired, 128, 0)
        if lengths is not None:
            runs = t < own_steps
            after = tl.where(runs, after, v)
            last = tl.where(runs, s, last)
            s = tl.where(runs, s, 0.0)
            k = tl.where(runs, k, 0)
        else:
            last = s
        v = after
        if KEEP == "state":
            k = after
        at = t * tl.cast(lanes, tl.int64) + lane
        tl.store(s_seq + at, s.to(s_seq.dtype.element_ty), mask=inside)
        if KEEP != "none":
            tl.store(kept + at, k.to(kept.dtype.element_ty), mask=inside)
    tl.store(v_last + lane, v, mask=inside)
