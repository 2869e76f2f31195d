"""PMSN forward: a tile of lanes at a time walks over all steps, its modes in scratch memory.

Scratch of a tile: the rows of its modes (``modes.py``), then gains d and residuals, one number a lane each.
"""

from __future__ import annotations

from .calls import PMSNForward
from .kernel import kernel
from .lanes import nbytes, pasted, rounded, width, zeros
from .memory import load, load_part, store, store_part, will_read, will_write
from .modes import FORWARD_ROWS, Z, expect_modes, gather_weights, read_modes, step, write_modes
from .somas import SINGLE, burst, no_infinity, soma, spike

AHEAD = 512  # lane steps for whose memory a walk asks ahead, two steps at least


@pasted
def steps_ahead(call, most):
    """So many steps ahead a walk over a tile of ``most`` lanes asks for memory."""
    return min(call.steps, max(2, AHEAD // most))


@pasted
def valid_steps(call, unit_index):
    """The steps of a unit before its padding."""
    if call.lengths == 0:
        return call.steps
    return min(call.steps, max(0, load(unit_index, call.lengths, unit_index)))


@pasted
def _drive(call, nil, states, j, current, gain, folded):
    """One step of all modes of a vector: ``y = d x + Re(sum w z)``, pair by pair."""
    vector = FORWARD_ROWS * width(nil) * nbytes(nil)
    y = gain * current
    base = states + j // width(nil) * call.modes * vector
    other = base + (call.modes - 1) * vector
    while base <= other:
        part = step(base, current)
        if base < other:
            part = part + (part if folded else step(other, current))
        y = y + part
        base += vector
        other -= vector
    return y


@pasted
def _walk(call, nil, unit, states, gains, residuals, start, size, until, ahead, folded):
    """Steps 0 to ``until - 1`` of the ``size`` lanes from ``start``."""
    theta, inverse = rounded(call.theta, unit), rounded(call.inverse, unit)
    for t in range(until):
        # some steps on, or at the beginning of the next unit
        soon = t + ahead
        then = start
        if soon >= call.steps:
            soon -= call.steps
            then += call.leap
        for j in range(0, size, width(nil)):
            left = size - j
            will_read(nil, call.x, soon * call.x_step + then + j)
            will_write(nil, call.s, soon * call.lanes + then + j)
            there = t * call.lanes + start + j
            current = no_infinity(load_part(nil, call.x, t * call.x_step + start + j, left))
            y = _drive(call, nil, states, j, current, load(nil, gains, j), folded)
            _v, k, after = soma(call.soma, y, load(nil, residuals, j), theta, inverse)
            store(residuals, j, after)
            if call.y_seq != 0:
                store_part(call.y_seq, there, y, left)
            store_part(call.s, there, spike(k) if call.burst == SINGLE else burst(k), left)


@kernel(PMSNForward)
def pmsn_forward(first, last, scratch, unit, call):
    """All steps of tasks. A task is a tile in the units of one group; unit ``i`` starts at lane ``i*leap``."""
    nil = zeros(unit)
    wide = width(nil)
    modes = call.modes
    gains = scratch + call.tile // wide * modes * FORWARD_ROWS * wide * nbytes(nil)
    residuals = gains + call.tile * nbytes(nil)
    for task in range(first, last):
        offset = task // call.groups * call.tile
        group = task % call.groups
        most = min(call.tile, call.leap - offset)
        ahead = steps_ahead(call, most)
        paired = gather_weights(nil, unit, call, scratch, FORWARD_ROWS, gains, offset)
        for i in range(group * call.units // call.groups, (group + 1) * call.units // call.groups):
            start = i * call.leap + offset
            size = min(most, call.lanes - start)
            until = valid_steps(call, i)
            folded = read_modes(nil, call, scratch, FORWARD_ROWS, start, size, 0) and paired
            expect_modes(nil, modes, size, call.z, 0, start + call.leap)
            expect_modes(nil, modes, size, 0, call.z_last, start)
            for j in range(0, size, wide):
                store(residuals, j, load_part(nil, call.r, start + j, size - j))
            _walk(call, nil, unit, scratch, gains, residuals, start, size, until, ahead, folded)
            for t in range(until, call.steps):
                for j in range(0, size, wide):
                    there = t * call.lanes + start + j
                    store_part(call.s, there, nil, size - j)
                    if call.y_seq != 0:
                        store_part(call.y_seq, there, nil, size - j)
            write_modes(nil, scratch, FORWARD_ROWS, Z, modes, call.z_last, start, size, folded)
            for j in range(0, size, wide):
                store_part(call.r_last, start + j, load(nil, residuals, j), size - j)
