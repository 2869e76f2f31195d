"""PMSN backward. A walk forward recomputes the drives, leaves the gradient g of each in ``gx`` and sums ``g x``,
``g z`` and ``g p``; a walk backward turns g into the gradient of x. In mode cumulative g is a sum over later steps, so
the walk forward is made twice, with that sum between. The sums take g one step late: by then z and p are at hand.

An address 0 stands for zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from .calls import PMSNBackward, PMSNBackwardTensors
from .kernel import kernel
from .lanes import formula, nbytes, once, part, pasted, rounded, where, width, zeros
from .memory import add_to, load, load_complex, load_part, store, store_part, will_read, will_write
from .modes import (
    BACKWARD_ROWS,
    GZ,
    P,
    add_product,
    adjoint,
    are_pairs,
    computed,
    gather_weights,
    last_sums,
    read_modes,
    step_and_sums,
    write_modes,
)
from .pmsn_forward import place, place_ahead, span_of
from .somas import CUMULATIVE, FIXED, FLOOR, argument, lost_and_clean, multiply_add, soma, where_positive
from .surrogates import GIVEN, slope

FLUSH = 64  # steps summed in the dtype of the kernel before they go to a double


class Scratch(NamedTuple):
    """Where the parts of a thread's memory begin. All but the first two hold one number a lane."""

    totals: int  # double [6 modes + 1, tile]: g z, g p, conj(p) gz of each mode, and g x
    states: int  # the rows of the modes
    gains: int
    residuals: int
    gain_sums: int
    pending: int  # g of the step before
    poison: int  # NaN for a lane that is lost


@pasted
def _lay_out(call, nil, scratch):
    row = call.tile * nbytes(nil)
    states = scratch + (6 * call.modes + 1) * call.tile * 8
    gains = states + BACKWARD_ROWS * call.modes * row
    return Scratch(scratch, states, gains, gains + row, gains + 2 * row, gains + 3 * row, gains + 4 * row)


@pasted
def _modes_of(call, nil, at, j):
    """Where the modes of the vector from lane ``j`` begin."""
    return at.states + j // width(nil) * call.modes * BACKWARD_ROWS * width(nil) * nbytes(nil)


# ---------------------------------------------------------------- the walk forward


@pasted
def _drive(call, nil, at, j, current, late, folded):
    """One step of all modes of a vector; the sums take ``late``, the gradient of the drive one step before."""
    vector = BACKWARD_ROWS * width(nil) * nbytes(nil)
    y = load(nil, at.gains, j) * current
    base = _modes_of(call, nil, at, j)
    other = base + (call.modes - 1) * vector
    while base <= other:
        share = step_and_sums(base, current, late)
        if base < other:
            share = share + (share if folded else step_and_sums(other, current, late))
        y = y + share
        base += vector
        other -= vector
    return y


@pasted
def _drive_gradient(call, nil, unit, at, span, j, t, y):
    """What reaches the drive ``y`` of step ``t`` from the spike and from outside; the residual takes its step."""
    theta, inverse = rounded(call.theta, unit), rounded(call.inverse, unit)
    v, _k, after = soma(call.soma, y, load(nil, at.residuals, j), theta, inverse)
    store(at.residuals, j, after)
    left = span.size - j
    g = nil
    if call.gs != 0:
        g = load_part(nil, call.gs, place(span, t, call.gs_step, call.gs_row) + j, left)
        if call.surrogate == GIVEN:
            index = place(span, t, call.slope_step, call.slope_row) + j
            g = g * load_part(nil, call.slope, index, left)
        else:
            u = argument(call.burst, v, theta)
            g = g * slope(call.surrogate, u, rounded(call.p, unit), rounded(call.q, unit))
    if call.gm != 0:
        g = g + load_part(nil, call.gm, place(span, t, call.gm_step, call.gm_row) + j, left)
    if call.soma == FLOOR or call.soma == FIXED:  # they clamp the drive
        g = where_positive(y, g)
    if call.gy != 0 and call.soma != CUMULATIVE:
        g = g + load_part(nil, call.gy, place(span, t, call.gy_step, call.gy_row) + j, left)
    return g


@once
def _walk_forward(call, nil, unit, at, span, folded, sweep, sweeps):
    """The first of the ``sweeps`` makes the gradients of the drives, the last sums them with what they met."""
    for t in range(span.until):
        x = place(span, t, call.x_step, call.x_row)
        out = place(span, t, call.out_step, call.out_row)
        x_ahead = place_ahead(call, span, t, call.x_step, call.x_row)
        out_ahead = place_ahead(call, span, t, call.out_step, call.out_row)
        gs_ahead = place_ahead(call, span, t, call.gs_step, call.gs_row)
        for j in range(0, span.size, width(nil)):
            left = span.size - j
            will_read(nil, call.x, x_ahead + j)
            will_write(nil, call.gx, out_ahead + j)
            lost, current = lost_and_clean(load_part(nil, call.x, x + j, left))
            if call.modes != 0:
                lost = lost + load(nil, at.poison, j)
                store(at.poison, j, lost)
            y = _drive(call, nil, at, j, current, load(nil, at.pending, j), folded)
            g = nil
            if sweep == 0:
                if call.gs != 0:
                    will_read(nil, call.gs, gs_ahead + j)
                g = _drive_gradient(call, nil, unit, at, span, j, t, y + lost)
                store_part(call.gx, out + j, g, left)
            else:
                g = load_part(nil, call.gx, out + j, left)
            if sweep == sweeps - 1:
                store(at.pending, j, g)
                store(at.gain_sums, j, multiply_add(g, current, load(nil, at.gain_sums, j)))
        if t % FLUSH == FLUSH - 1:
            _flush(nil, call.modes, call.tile, at, span.size, folded)


@formula
def finite(share):
    """0 where it is not finite: a lane that is lost, or overflowed, adds nothing to what all share."""
    return where((share - share).equals(0.0), share, 0.0)


@part
def _flush(nil, modes, tile, at, size, folded):
    """Add the sums of some steps to those in double and start them anew; the other of a pair gets the conjugate."""
    wide = width(nil)
    for j in range(0, size, wide):
        base = at.states + j // wide * modes * BACKWARD_ROWS * wide * nbytes(nil)
        for m in range(modes):
            source = computed(m, modes, folded)
            for i in range(4):
                share = load(nil, base, (source * BACKWARD_ROWS + GZ + i) * wide)
                if source != m and i % 2 == 1:
                    share = -share
                add_to(at.totals, (6 * m + i) * tile + j, finite(share))
        for m in range(modes):
            for i in range(GZ, BACKWARD_ROWS):
                store(base, (m * BACKWARD_ROWS + i) * wide, nil)
        add_to(at.totals, 6 * modes * tile + j, finite(load(nil, at.gain_sums, j)))
        store(at.gain_sums, j, nil)


@once
def _sum_from_the_end(call, nil, unit, at, span):
    """Mode cumulative, where a drive moves all later residuals: the gradient of each is that of its own spike and the
    sum of those after it, from that of the last residual on.
    """
    theta = rounded(call.theta, unit)
    for j in range(0, span.size, width(nil)):
        last = nil
        if call.gr != 0:
            last = load_part(nil, call.gr, span.start + j, span.size - j)
        store(at.pending, j, last / theta)
    for t in range(span.until - 1, -1, -1):
        out = place(span, t, call.out_step, call.out_row)
        gy = place(span, t, call.gy_step, call.gy_row)
        for j in range(0, span.size, width(nil)):
            g = load(nil, at.pending, j) + load_part(nil, call.gx, out + j, span.size - j)
            store(at.pending, j, g)
            if call.gy != 0:
                g = g + load_part(nil, call.gy, gy + j, span.size - j)
            store_part(call.gx, out + j, g, span.size - j)
    for j in range(0, span.size, width(nil)):
        g = load(nil, at.pending, j) * theta
        if span.until == 0 and call.gr != 0:  # the same, without a rounding
            g = load_part(nil, call.gr, span.start + j, span.size - j)
        store_part(call.gr0, span.start + j, g, span.size - j)


# ---------------------------------------------------------------- the walk back


@part
def _turn(nil, call, at, start, size, folded):
    """Between the walks: the rows of p take the gradient of the last z; before, ``conj(p)`` times it is a share of ga.

    Return whether the gradients come in conjugate pairs.
    """
    wide = width(nil)
    modes, tile, rows = call.modes, call.tile, BACKWARD_ROWS
    paired = True
    for j in range(0, size, wide):
        base = at.states + j // wide * modes * rows * wide * nbytes(nil)
        for m in range(modes):
            re = nil
            im = nil
            if call.gz != 0:
                re, im = load_complex(nil, call.gz, (start + j) * modes + m, modes, size - j)
                source = computed(m, modes, folded)
                pr = load(nil, base, (source * rows + P) * wide)
                pi = load(nil, base, (source * rows + P + 1) * wide)
                if source != m:
                    pi = -pi
                pr, pi = finite(pr), finite(pi)
                add_product(at.totals, (6 * m + 4) * tile + j, (6 * m + 5) * tile + j, re, im, pr, pi)
            # p of this mode may still be read for the other of its pair
            store(base, (m * rows + GZ) * wide, re)
            store(base, (m * rows + GZ + 1) * wide, im)
        for m in range(modes):
            for i in range(2):
                store(base, (m * rows + P + i) * wide, load(nil, base, (m * rows + GZ + i) * wide))
        if not are_pairs(nil, base, rows, P, modes):
            paired = False
    return paired


@once
def _walk_back(call, nil, at, span, folded):
    """Gradients of the drives -> gradients of x, in place."""
    vector = BACKWARD_ROWS * width(nil) * nbytes(nil)
    for t in range(span.until - 1, -1, -1):
        out = place(span, t, call.out_step, call.out_row)
        for j in range(0, span.size, width(nil)):
            left = span.size - j
            will_write(nil, call.gx, out - span.ahead * call.out_step + j)
            g = load_part(nil, call.gx, out + j, left)
            total = load(nil, at.gains, j) * g
            base = _modes_of(call, nil, at, j)
            other = base + (call.modes - 1) * vector
            while base <= other:
                share = adjoint(base, g)
                if base < other:
                    share = share + (share if folded else adjoint(other, g))
                total = total + share
                base += vector
                other -= vector
            store_part(call.gx, out + j, total, left)


# ---------------------------------------------------------------- the kernel


@part
def _sum_lanes(call, totals, offset, task):
    """Add the lanes of each channel of a tile, in order, to double [tasks, slots, 6 modes + 1]."""
    rows = 6 * call.modes + 1
    first = offset % call.inner // call.per_channel
    for i in range(min(call.tile, call.leap - offset)):
        slot = (offset + i) % call.inner // call.per_channel - first
        for k in range(rows):
            index = (task * call.slots + slot) * rows + k
            store(call.sums, index, load(1.0, call.sums, index) + load(1.0, totals, k * call.tile + i))


@once
def _one_unit(call, nil, unit, at, span, paired):
    """The lanes of a tile in one unit: forward, and back."""
    wide = width(nil)
    modes = call.modes
    sweeps = 2 if call.soma == CUMULATIVE else 1
    folded = False
    for sweep in range(sweeps):
        if sweep == 1:
            _sum_from_the_end(call, nil, unit, at, span)
        folded = read_modes(nil, call, at.states, BACKWARD_ROWS, span.start, span.size, at.poison) and paired
        for j in range(0, span.size, wide):
            store(at.residuals, j, load_part(nil, call.r, span.start + j, span.size - j))
            store(at.gain_sums, j, nil)
            store(at.pending, j, nil)
        _walk_forward(call, nil, unit, at, span, folded, sweep, sweeps)
    for t in range(span.until, call.steps):
        out = place(span, t, call.out_step, call.out_row)
        for j in range(0, span.size, wide):
            store_part(call.gx, out + j, nil, span.size - j)
    for j in range(0, span.size, wide):
        for m in range(modes):
            mode = _modes_of(call, nil, at, j) + m * BACKWARD_ROWS * wide * nbytes(nil)
            last_sums(mode, load(nil, at.pending, j))
    _flush(nil, modes, call.tile, at, span.size, folded)
    folded = _turn(nil, call, at, span.start, span.size, folded) and paired
    _walk_back(call, nil, at, span, folded)
    if call.gz0 != 0:
        write_modes(nil, call, at.states, BACKWARD_ROWS, P, call.gz0, span.start, span.size, folded)


@kernel(PMSNBackward, PMSNBackwardTensors)
def pmsn_backward(first, last, scratch, unit, call):
    """The adjoint of ``pmsn_forward``, in the same tasks."""
    nil = zeros(unit)
    at = _lay_out(call, nil, scratch)
    for task in range(first, last):
        offset = task // call.groups * call.tile
        group = task % call.groups
        paired = gather_weights(nil, unit, call, at.states, BACKWARD_ROWS, at.gains, offset)
        for j in range((6 * call.modes + 1) * call.tile):
            store(at.totals, j, 0.0)
        for i in range(group * call.units // call.groups, (group + 1) * call.units // call.groups):
            _one_unit(call, nil, unit, at, span_of(call, i, offset), paired)
        _sum_lanes(call, at.totals, offset, task)
