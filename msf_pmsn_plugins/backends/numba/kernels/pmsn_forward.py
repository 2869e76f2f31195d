"""PMSN forward: a tile of lanes at a time walks over all steps, its modes in scratch memory.

Scratch of a tile: the rows of its modes (``modes.py``), then gains d and residuals, one number a lane each.
"""

from __future__ import annotations

from typing import NamedTuple

from .calls import PMSNForward, PMSNForwardTensors
from .kernel import kernel
from .lanes import nbytes, once, pasted, rounded, width, zeros
from .memory import load, load_part, store, store_part, will_read, will_write
from .modes import FORWARD_ROWS, Z, expect_modes, gather_weights, read_modes, step, write_modes
from .somas import SINGLE, burst, no_infinity, soma, spike

AHEAD = 512  # lane steps for whose memory a walk asks ahead, two steps at least


class Span(NamedTuple):
    """The lanes of a tile in one unit."""

    start: int
    size: int
    until: int  # steps before the padding
    lead: int  # the first leading lane of the unit
    offset: int  # from there
    ahead: int  # so many steps ahead a walk asks for memory


@pasted
def span_of(call, i, offset):
    """The lanes of the tile at ``offset`` in unit ``i``."""
    start = i * call.leap + offset
    most = min(call.tile, call.leap - offset)
    until = call.steps
    if call.lengths != 0:
        until = min(call.steps, max(0, load(i, call.lengths, i)))
    ahead = min(call.steps, max(2, AHEAD // most))
    return Span(start, min(most, call.lanes - start), until, i * (call.leap // call.inner), offset, ahead)


@pasted
def place(span, t, step, row):
    """Where step ``t`` of a span begins in a sequence with these strides."""
    return t * step + span.lead * row + span.offset


@pasted
def place_ahead(call, span, t, step, row):
    """Where what is walked some steps after ``t`` begins: in this unit or the next."""
    soon = t + span.ahead
    if soon >= call.steps:
        return place(span, soon - call.steps, step, row) + call.leap // call.inner * row
    return place(span, soon, step, row)


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


@once
def _walk(call, nil, unit, states, gains, residuals, span, folded):
    """The steps of a span."""
    theta, inverse = rounded(call.theta, unit), rounded(call.inverse, unit)
    for t in range(span.until):
        x = place(span, t, call.x_step, call.x_row)
        out = place(span, t, call.out_step, call.out_row)
        x_ahead = place_ahead(call, span, t, call.x_step, call.x_row)
        out_ahead = place_ahead(call, span, t, call.out_step, call.out_row)
        for j in range(0, span.size, width(nil)):
            left = span.size - j
            will_read(nil, call.x, x_ahead + j)
            will_write(nil, call.s, out_ahead + j)
            current = no_infinity(load_part(nil, call.x, x + j, left))
            y = _drive(call, nil, states, j, current, load(nil, gains, j), folded)
            v, k, after = soma(call.soma, y, load(nil, residuals, j), theta, inverse)
            store(residuals, j, after)
            if call.r_seq != 0:
                store_part(call.r_seq, t * call.lanes + span.start + j, after, left)
            if call.y != 0:
                store_part(call.y, out + j, y, left)
            if call.m != 0:
                store_part(call.m, out + j, v * theta, left)
            store_part(call.s, out + j, spike(k) if call.burst == SINGLE else burst(k), left)


@once
def _pad(call, nil, residuals, span):
    """Zeros for the steps after the end, and the residual that stays."""
    for t in range(span.until, call.steps):
        out = place(span, t, call.out_step, call.out_row)
        for j in range(0, span.size, width(nil)):
            for sequence in (call.s, call.y, call.m):
                if sequence != 0:
                    store_part(sequence, out + j, nil, span.size - j)
            if call.r_seq != 0:
                at = t * call.lanes + span.start + j
                store_part(call.r_seq, at, load(nil, residuals, j), span.size - j)


@kernel(PMSNForward, PMSNForwardTensors)
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
        paired = gather_weights(nil, unit, call, scratch, FORWARD_ROWS, gains, offset)
        for i in range(group * call.units // call.groups, (group + 1) * call.units // call.groups):
            span = span_of(call, i, offset)
            start, size = span.start, span.size
            folded = read_modes(nil, call, scratch, FORWARD_ROWS, start, size, 0) and paired
            expect_modes(nil, modes, size, call.z, 0, start + call.leap)
            expect_modes(nil, modes, size, 0, call.z_last, start)
            for j in range(0, size, wide):
                store(residuals, j, load_part(nil, call.r, start + j, size - j))
            _walk(call, nil, unit, scratch, gains, residuals, span, folded)
            _pad(call, nil, residuals, span)
            write_modes(nil, call, scratch, FORWARD_ROWS, Z, call.z_last, start, size, folded)
            for j in range(0, size if call.r_last != 0 else 0, wide):
                store_part(call.r_last, start + j, load(nil, residuals, j), size - j)
