"""MSF: a block of lanes at a time walks over all steps, its membranes in scratch memory.

Scratch of a block: membranes, or their gradient; lengths, int32; sums for the gradients of rates, first thresholds and
amounts of a soft reset.
"""

from __future__ import annotations

from typing import NamedTuple

from .calls import (
    AFTER_CHARGE,
    AT_ONCE,
    BEFORE_CHARGE,
    CODE,
    MEMBRANE,
    MSFBackward,
    MSFBackwardTensors,
    MSFForward,
    MSFForwardTensors,
)
from .charges import RATE_OF_INPUT, charge, charge_back, rate_gradient
from .kernel import kernel
from .lanes import filled, long_zeros, nbytes, once, pasted, rounded, width
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
    LOOK_AT_FIRST,
    decode,
    encode,
    fire,
    no_counts,
    past_reset,
    quiet_lanes,
    reset,
    threshold,
    through_reset,
    window_slopes,
)
from .surrogates import GIVEN, slope

# Parts of the scratch memory, one number a lane each.
FORWARD_PARTS = 2
BACKWARD_PARTS = 2
LEARNING_PARTS = 5


class Run(NamedTuple):
    """Neighbouring lanes, and where the first of them lies in each sequence."""

    start: int
    size: int
    x: int
    out: int


class RunBack(NamedTuple):
    """The same for the way back."""

    start: int
    size: int
    gs: int
    gm: int
    x: int
    kept: int
    total: int
    slope: int
    out: int


class Scratch(NamedTuple):
    """Where the parts of a thread's memory begin."""

    state: int
    lives: int
    rate: int
    first: int
    amount: int


class Place(NamedTuple):
    """A vector of lanes at one step; in a ``partly`` padded one some lanes are over."""

    j: int  # first lane of the run
    left: int  # lanes
    t: int
    partly: bool


class Values(NamedTuple):
    """The numbers of a vector of lanes."""

    rate: float
    first: float  # zeros, or the lanes' own first thresholds
    theta: float  # the first threshold
    amount: float


@pasted
def _of_lanes(nil, unit, address, own, lane, left):
    """A number for each of ``left`` lanes from ``lane``, or one for all."""
    if own != 0:
        return load_part(nil, address, lane, left)
    return filled(nil, load(unit, address, 0))


@pasted
def _values(call, unit, run, place):
    """The numbers of a vector of lanes."""
    nil = long_zeros(unit)
    lane, left = run.start + place.j, place.left
    first = nil
    if call.own_firsts != 0:
        first = load_part(nil, call.first, lane, left)
    return Values(
        _of_lanes(nil, unit, call.rate, call.own_rates, lane, left),
        first,
        threshold(call, unit, first, 0),
        _of_lanes(nil, unit, call.amount, call.own_amounts, lane, left),
    )


@pasted
def _after_reset(call, unit, m, n, values):
    return reset(call.reset, m, n, values.theta, rounded(call.v_reset, unit), values.amount)


@pasted
def _living(scratch, place, yes, no):
    """``yes`` in the lanes that are not over, else ``no``."""
    return living(place.partly, scratch.lives, place.j, place.t, yes, no)


# ---------------------------------------------------------------- forward


@pasted
def _charged(call, unit, current, before, values):
    """The membrane of a step that began with the state ``before``."""
    rest = rounded(call.rest, unit)
    if call.delay == AT_ONCE:
        return charge(call.charge, current, before, values.rate, rest)
    n = fire(call, unit, before, values.first)
    if call.delay == BEFORE_CHARGE:
        return charge(call.charge, current, _after_reset(call, unit, before, n, values), values.rate, rest)
    return _after_reset(call, unit, charge(call.charge, current, before, values.rate, rest), n, values)


@pasted
def _forward_step(call, unit, scratch, run, place):
    nil = long_zeros(unit)
    j, left, t, _partly = place
    x = run.x + t * call.x_step + j
    out = run.out + t * call.out_step + j
    will_read(nil, call.x, x + call.x_step if t + 1 < call.steps else run.x + run.size + j)
    values = _values(call, unit, run, place)
    before = load(nil, scratch.state, j)
    current = load_part(nil, call.x, x, left) * rounded(call.scale, unit)
    m = _charged(call, unit, current, before, values)
    if call.keep == MEMBRANE:
        store_part(call.kept, out, _living(scratch, place, m, nil), left)
    elif call.keep == CODE:
        code = encode(call, unit, m, rounded(call.width, unit))
        store_bytes(call.kept, out, _living(scratch, place, code, no_counts(nil)), left)
    n = fire(call, unit, m, values.first)
    store_part(call.s, out, _living(scratch, place, n, nil), left)
    if call.delay == AT_ONCE:
        m = _after_reset(call, unit, m, n, values)
    store(scratch.state, j, _living(scratch, place, m, before))


@kernel(MSFForward, MSFForwardTensors)
def msf_forward(first, last, memory, unit, call):
    """All steps of blocks of lanes."""
    nil = long_zeros(unit)
    wide = width(nil)
    part = nbytes(nil) * call.block
    scratch = Scratch(memory, memory + part, 0, 0, 0)
    for i in range(first, last):
        row = i // call.blocks
        lane = i % call.blocks * call.block
        size = min(call.block, call.row - lane)
        run = Run(row * call.row + lane, size, row * call.x_row + lane, row * call.out_row + lane)
        until = call.steps
        if call.lengths != 0:
            until = read_lengths(call, scratch.lives, run.start, size)
        for j in range(0, size, wide):
            store(scratch.state, j, load_part(nil, call.v, run.start + j, size - j))
        whole = size - size % wide
        for t in range(call.steps):
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _forward_step(call, unit, scratch, run, Place(j, wide, t, False))
                done = whole
            for j in range(done, size, wide):
                _forward_step(call, unit, scratch, run, Place(j, size - j, t, t >= until))
        for j in range(0, size, wide):
            store_part(call.v_last, run.start + j, load(nil, scratch.state, j), size - j)


# ---------------------------------------------------------------- backward


class Gradients(NamedTuple):
    """What a step backward knows of a vector of lanes."""

    m: float  # the membrane
    after: float  # gradient of the state that the step left
    fired: float  # gradient of the membrane through its spikes
    h: float  # and in all


@pasted
def _back(call, run, t, step):
    """From step ``t`` of a sequence to the one that is walked next, of this run or of the one beside it."""
    return -step if t > 0 else (call.steps - 1) * step + run.size


@pasted
def _state_before(call, nil, run, place):
    """With which a step began; where resets are not delayed and ``t > 0``, before its reset."""
    j, left, t, _partly = place
    if t == 0:
        return load_part(nil, call.v0, run.start + j, left)
    return load_part(nil, call.kept, run.kept + (t - 1) * call.kept_step + j, left)


@pasted
def _charged_state(call, unit, before, t, values):
    """What step ``t`` charged, from :func:`_state_before`."""
    if (t == 0 and call.delay == AT_ONCE) or call.delay == AFTER_CHARGE:
        return before
    return _after_reset(call, unit, before, fire(call, unit, before, values.first), values)


@pasted
def _quiet_before(call, nil, run, place, theta):
    """1 where the step before did not fire, else 0."""
    j, left, t, _partly = place
    if t > 0 and call.keep == CODE:
        code = load_bytes(nil, call.kept, run.kept + (t - 1) * call.kept_step + j, left)
        return decode(code)[0]
    return quiet_lanes(_state_before(call, nil, run, place), theta)


@pasted
def _slopes(call, unit, run, place, m, values):
    """The surrogate at the membranes, summed over the thresholds and at the first of them."""
    j, left, t, _partly = place
    if call.surrogate == GIVEN:
        total = load_part(m, call.total, run.total + t * call.total_step + j, left)
        first = total
        if call.slope != 0:
            first = load_part(m, call.slope, run.slope + t * call.slope_step + j, left)
        return total, first
    p, q = rounded(call.p, unit), rounded(call.q, unit)
    first = slope(call.surrogate, m - values.theta, p, q)
    total = first
    for i in range(1, call.thresholds):
        total = total + slope(call.surrogate, m - threshold(call, unit, values.first, i), p, q)
    return total, first


@pasted
def _backward_step(call, unit, scratch, run, place):
    """The adjoint of :func:`_forward_step`."""
    nil = long_zeros(unit)
    j, left, t, _partly = place
    kept = run.kept + t * call.kept_step + j
    out = run.out + t * call.out_step + j
    will_read(nil, call.gx, out + _back(call, run, t, call.out_step))
    values = _values(call, unit, run, place)
    after = load(nil, scratch.state, j)
    g = nil
    if call.gs != 0:
        gs = run.gs + t * call.gs_step + j
        will_read(nil, call.gs, gs + _back(call, run, t, call.gs_step))
        g = load_part(nil, call.gs, gs, left)

    m = nil
    first = nil
    if call.keep == CODE:
        quiet, near = decode(load_bytes(nil, call.kept, kept, left))
        total = window_slopes(call, unit, near, rounded(call.q, unit))
    else:
        will_read(nil, call.kept, kept + _back(call, run, t, call.kept_step))
        m = load_part(nil, call.kept, kept, left)
        quiet = quiet_lanes(m, values.theta)
        total, first = _slopes(call, unit, run, place, m, values)

    fired = through_reset(call.through, g, after, total, first, m, rounded(call.v_reset, unit), values.amount)
    if (LOOK_AT_FIRST >> call.through) & 1 and call.thresholds > 1:  # the counts' slopes at the others
        fired = fired + g * (total - first)
    h = fired + (past_reset(call.reset, after, quiet) if call.delay == AT_ONCE else after)
    if call.gm != 0:
        h = h + load_part(nil, call.gm, run.gm + t * call.gm_step + j, left)
    gx, before = charge_back(call.charge, h, values.rate, rounded(call.scale, unit))
    if call.delay == BEFORE_CHARGE:
        before = past_reset(call.reset, before, _quiet_before(call, nil, run, place, values.theta))
    if call.learned != 0:
        _learn(call, unit, scratch, run, place, values, Gradients(m, after, fired, h))
    store(scratch.state, j, _living(scratch, place, before, after))
    store_part(call.gx, out, _living(scratch, place, gx, nil), left)


@pasted
def _learn(call, unit, scratch, run, place, values, grads):
    """Add what a step gives to the gradients of the parameters."""
    nil = long_zeros(unit)
    j, left, t, _partly = place
    if call.grate != 0:
        current = nil
        if call.rate_charge == RATE_OF_INPUT:
            current = load_part(nil, call.x, run.x + t * call.x_step + j, left)
        v = _charged_state(call, unit, _state_before(call, nil, run, place), t, values)
        share = rate_gradient(call.rate_charge, grads.h, current, v, rounded(call.rest, unit))
        _add(nil, scratch, place, scratch.rate, share)
    if call.gfirst != 0:
        _add(nil, scratch, place, scratch.first, -grads.fired)
    if call.gamount != 0:
        if call.delay == AT_ONCE:
            share = -fire(call, unit, grads.m, values.first) * grads.after
        else:
            share = -fire(call, unit, _state_before(call, nil, run, place), values.first) * grads.h
        _add(nil, scratch, place, scratch.amount, share)


@pasted
def _add(nil, scratch, place, sums, share):
    store(sums, place.j, load(nil, sums, place.j) + _living(scratch, place, share, nil))


@pasted
def _run_back(call, row, lane):
    """The run from ``lane`` of a row."""
    return RunBack(
        row * call.row + lane,
        min(call.block, call.row - lane),
        row * call.gs_row + lane,
        row * call.gm_row + lane,
        row * call.x_row + lane,
        row * call.kept_row + lane,
        row * call.total_row + lane,
        row * call.slope_row + lane,
        row * call.out_row + lane,
    )


@pasted
def _sums(call, scratch):
    """The gradients of parameters, and where they are summed."""
    return (call.grate, scratch.rate), (call.gfirst, scratch.first), (call.gamount, scratch.amount)


@once
def _begin_back(call, nil, scratch, run):
    for j in range(0, run.size, width(nil)):
        g = nil
        if call.gv != 0:
            g = load_part(nil, call.gv, run.start + j, run.size - j)
        store(scratch.state, j, g)
        for target, sums in _sums(call, scratch):
            if target != 0:
                store(sums, j, nil)


@once
def _end_back(call, nil, scratch, run):
    for j in range(0, run.size, width(nil)):
        left = run.size - j
        store_part(call.gv0, run.start + j, load(nil, scratch.state, j), left)
        for target, sums in _sums(call, scratch):
            if target != 0:
                store_part(target, run.start + j, load(nil, sums, j), left)


@kernel(MSFBackward, MSFBackwardTensors)
def msf_backward(first, last, memory, unit, call):
    """The adjoint of :func:`msf_forward`; an address 0 stands for zeros."""
    nil = long_zeros(unit)
    wide = width(nil)
    part = nbytes(nil) * call.block
    scratch = Scratch(memory, memory + part, memory + 2 * part, memory + 3 * part, memory + 4 * part)
    for i in range(first, last):
        run = _run_back(call, i // call.blocks, i % call.blocks * call.block)
        until = call.steps
        if call.lengths != 0:
            until = read_lengths(call, scratch.lives, run.start, run.size)
        _begin_back(call, nil, scratch, run)
        whole = run.size - run.size % wide
        for t in range(call.steps - 1, -1, -1):
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _backward_step(call, unit, scratch, run, Place(j, wide, t, False))
                done = whole
            for j in range(done, run.size, wide):
                _backward_step(call, unit, scratch, run, Place(j, run.size - j, t, t >= until))
        _end_back(call, nil, scratch, run)
