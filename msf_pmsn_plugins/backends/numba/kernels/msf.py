"""MSF: a block of lanes at a time walks over all steps, its membranes in scratch memory.

Scratch of a block, one number a lane each: membranes, or their gradient; sums for the gradient of the rate; int32 lengths.
"""

from __future__ import annotations

from .calls import CODE, MEMBRANE, MSFBackward, MSFForward
from .charges import RATE_OF_INPUT, charge, charge_back, rate_gradient
from .kernel import kernel
from .lanes import long_zeros, pasted, rounded, width
from .memory import (
    living,
    load,
    load_bytes,
    load_part,
    read_lengths,
    store,
    store_bytes,
    store_part,
    will_read,
)
from .resets import (
    HARD,
    decode,
    encode,
    fire,
    no_counts,
    past_reset,
    quiet_lanes,
    reset,
    through_reset,
    window_slopes,
)
from .surrogates import slope

ROW = 8  # bytes of a lane in each part of the scratch, enough for a double
FORWARD_SCRATCH = 12  # bytes of a lane
BACKWARD_SCRATCH = 20


@pasted
def _forward_step(call, unit, scratch, start, j, left, t, partly):
    """Step ``t`` of the ``left`` lanes from ``start + j``; in a ``partly`` padded one some lanes are over."""
    nil = long_zeros(unit)
    x = t * call.x_step + start
    there = t * call.lanes + start + j
    soon = x + call.x_step if t + 1 < call.steps else start + call.block
    will_read(nil, call.x, soon + j)
    theta = load(unit, call.thetas, 0)
    lives = scratch + ROW * call.block
    k = nil + rounded(call.rate, unit)
    if call.rates != 0:
        k = load_part(nil, call.rates, start + j, left)
    before = load(nil, scratch, j)
    current = load_part(nil, call.x, x + j, left) * rounded(call.scale, unit)
    m = charge(call.charge, current, before, k, rounded(call.rest, unit))
    if call.keep == MEMBRANE:
        store_part(call.kept, there, living(partly, lives, j, t, m, nil), left)
    elif call.keep == CODE:
        code = encode(nil, m, unit, call.thetas, call.count, rounded(call.width, unit), theta)
        store_bytes(call.kept, there, living(partly, lives, j, t, code, no_counts(nil)), left)
    n = fire(nil, m, unit, call.thetas, call.count)
    store_part(call.s, there, living(partly, lives, j, t, n, nil), left)
    after = reset(call.reset, m, n, theta, rounded(call.v_reset, unit), rounded(call.amount, unit))
    store(scratch, j, living(partly, lives, j, t, after, before))


@kernel(MSFForward)
def msf_forward(first, last, scratch, unit, call):
    """All steps of blocks of lanes."""
    nil = long_zeros(unit)
    wide = width(nil)
    for i in range(first, last):
        start = i * call.block
        size = min(call.block, call.lanes - start)
        until = call.steps
        if call.lengths != 0:
            lives = scratch + ROW * call.block
            until = read_lengths(lives, call.lengths, call.per_length, start, size, call.block, call.steps)
        for j in range(0, size, wide):
            store(scratch, j, load_part(nil, call.v, start + j, size - j))
        whole = size - size % wide
        for t in range(call.steps):
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _forward_step(call, unit, scratch, start, j, wide, t, False)
                done = whole
            for j in range(done, size, wide):
                _forward_step(call, unit, scratch, start, j, size - j, t, t >= until)
        for j in range(0, size, wide):
            store_part(call.v_last, start + j, load(nil, scratch, j), size - j)


@pasted
def _membrane_before(call, nil, unit, start, j, left, t, theta):
    """The state with which step ``t`` began."""
    if t == 0:
        return load_part(nil, call.v0, start + j, left)
    m = load_part(nil, call.kept, (t - 1) * call.lanes + start + j, left)
    n = nil
    if call.reset != HARD:
        n = fire(nil, m, unit, call.thetas, call.count)
    return reset(call.reset, m, n, theta, rounded(call.v_reset, unit), rounded(call.amount, unit))


@pasted
def _slopes(call, nil, unit, m, p, q, theta):
    """The surrogate at the membrane, summed over the thresholds and at the first of them."""
    first = slope(call.surrogate, m - theta, p, q)
    total = first
    for c in range(1, call.count):
        total = total + slope(call.surrogate, m - load(unit, call.thetas, c), p, q)
    return total, first


@pasted
def _backward_step(call, unit, scratch, start, j, left, t, partly):
    """The adjoint of :func:`_forward_step`."""
    nil = long_zeros(unit)
    rate_sums, lives = scratch + ROW * call.block, scratch + 2 * ROW * call.block
    there = t * call.lanes + start + j
    soon = there - call.lanes if t > 0 else (call.steps - 1) * call.lanes + start + call.block + j
    will_read(nil, call.gx, soon)
    theta = load(unit, call.thetas, 0)
    p, q, v_reset = rounded(call.p, unit), rounded(call.q, unit), rounded(call.v_reset, unit)
    after = load(nil, scratch, j)
    g = nil
    if call.gs != 0:
        will_read(nil, call.gs, soon)
        g = load_part(nil, call.gs, t * call.gs_step + start + j, left)
    k = nil + rounded(call.rate, unit)
    if call.rates != 0:
        k = load_part(nil, call.rates, start + j, left)

    m = nil
    total = nil
    first = nil
    if call.keep == CODE:
        quiet, near = decode(load_bytes(nil, call.kept, there, left))
        total = window_slopes(nil, near, unit, call.sums, call.count, q)
    else:
        will_read(nil, call.kept, soon)
        m = load_part(nil, call.kept, there, left)
        quiet = quiet_lanes(m, theta)
        total, first = _slopes(call, nil, unit, m, p, q, theta)

    past = past_reset(call.reset, after, quiet)
    h = through_reset(call.through, g, after, total, first, m, v_reset, rounded(call.amount, unit)) + past
    if call.through == HARD and call.count > 1:  # the reset looks at the first threshold only
        h = h + g * (total - first)
    if call.gm != 0:
        h = h + load_part(nil, call.gm, t * call.gm_step + start + j, left)
    gx, before = charge_back(call.charge, h, k, rounded(call.scale, unit))

    if call.learned != 0:
        current = nil
        if call.rate_charge == RATE_OF_INPUT:
            current = load_part(nil, call.x, t * call.x_step + start + j, left)
        v = _membrane_before(call, nil, unit, start, j, left, t, theta)
        share = rate_gradient(call.rate_charge, h, current, v, rounded(call.rest, unit))
        store(rate_sums, j, load(nil, rate_sums, j) + living(partly, lives, j, t, share, nil))
    store(scratch, j, living(partly, lives, j, t, before, after))
    store_part(call.gx, there, living(partly, lives, j, t, gx, nil), left)


@kernel(MSFBackward)
def msf_backward(first, last, scratch, unit, call):
    """The adjoint of :func:`msf_forward`."""
    nil = long_zeros(unit)
    wide = width(nil)
    rate_sums, lives = scratch + ROW * call.block, scratch + 2 * ROW * call.block
    for i in range(first, last):
        start = i * call.block
        size = min(call.block, call.lanes - start)
        until = call.steps
        if call.lengths != 0:
            until = read_lengths(lives, call.lengths, call.per_length, start, size, call.block, call.steps)
        for j in range(0, size, wide):
            g = nil
            if call.gv != 0:
                g = load_part(nil, call.gv, start + j, size - j)
            store(scratch, j, g)
            store(rate_sums, j, nil)
        whole = size - size % wide
        for t in range(call.steps - 1, -1, -1):
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _backward_step(call, unit, scratch, start, j, wide, t, False)
                done = whole
            for j in range(done, size, wide):
                _backward_step(call, unit, scratch, start, j, size - j, t, t >= until)
        for j in range(0, size, wide):
            store_part(call.gv0, start + j, load(nil, scratch, j), size - j)
            if call.learned != 0:
                store_part(call.grate, start + j, load(nil, rate_sums, j), size - j)
