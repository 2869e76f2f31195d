"""One step of PMSN on lanes [L, C]: a tile of channels at a time, whose weights are gathered once for all L.

Gathering weights for every lane, as for a sequence, would cost more than the step. Each lane is computed in the order
of ``pmsn_forward``, so a step has the same bits there and here.

Scratch of a tile: of each vector and mode the rows of e and w, then gains d; backward also sums for the gradients of
the weights, of some lanes in the dtype of the kernel and of all in double. Then the modes of one vector.
"""

from __future__ import annotations

from typing import NamedTuple

from .calls import PMSNStep, PMSNStepBack, PMSNStepBackTensors, PMSNStepTensors
from .kernel import kernel
from .lanes import Value, fma, fnma, formula, nbytes, once, part, pasted, rounded, where, width, zeros
from .memory import (
    add_to,
    get,
    load,
    load_complex,
    load_four,
    load_part,
    row,
    store,
    store_complex,
    store_four,
    store_part,
)
from .modes import expect_modes
from .somas import (
    FIXED,
    FLOOR,
    SINGLE,
    argument,
    burst,
    lost_and_clean,
    no_infinity,
    only_finite,
    soma,
    spike,
    where_positive,
)
from .surrogates import GIVEN, slope

STEP_ROWS = 4  # of a mode: e and w, each with its real and imaginary part
SUMS = 4  # of a mode: the gradients of e and w
ADDED = 64  # lanes of a channel that are summed in the dtype of the kernel before they go to a double


class Scratch(NamedTuple):
    """Where the parts of a thread's memory begin."""

    totals: int  # double [SUMS * modes + 1, tile]
    weights: int
    gains: int
    rows: int  # of one vector: z of each mode, re and im
    start: int  # the same before the step
    grads: int  # gradients to it
    sums: int  # [SUMS * modes + 1, tile]


@formula
def advanced(base, x, zr, zi):
    """``z + (e z + x)``, and the share ``Re(w z)`` of the drive, with the weights at ``base``."""
    er, ei, wr, wi = (row(x, base, i) for i in range(4))
    re = zr + fma(er, zr, fnma(ei, zi, x))
    im = zi + fma(er, zi, ei * zr)
    return re, im, fnma(wi, im, wr * re)


@formula
def sent_back(base, g, cr, ci):
    """``lam = conj(w) g + c``, and ``lam + conj(e) lam``."""
    er, ei, wr, wi = (row(g, base, i) for i in range(4))
    re = fma(wr, g, cr)
    im = fnma(wi, g, ci)
    return re, im, re + fma(er, re, ei * im), im + fnma(ei, re, er * im)


@formula
def products(zr, zi, gr, gi):
    """``conj(z) g``, zero where it is not finite: a lane that is lost adds nothing to what all share."""
    re, im = fma(zr, gr, zi * gi), fnma(zi, gr, zr * gi)
    return where((re - re).equals(0.0), re, 0.0), where((im - im).equals(0.0), im, 0.0)


@formula
def finite_product(x, g):
    """``x g``, likewise."""
    share = x * g
    return where((share - share).equals(0.0), share, 0.0)


@formula
def double_at(like, base, index):
    """Double numbers in memory, in the dtype of ``like``."""
    wide: Value = get(like.widen(), base, index)
    return wide.round_to(like)


@pasted
def _mode(call, nil, at, j, m):
    """Where the weights of a mode of the vector from channel ``j`` of the tile lie."""
    return at.weights + (j // width(nil) * call.modes + m) * STEP_ROWS * width(nil) * nbytes(nil)


@part
def _gather(nil, call, at, offset, size):
    """The weights of a tile of channels."""
    wide = width(nil)
    for j in range(0, size, wide):
        for m in range(call.modes):
            base = _mode(call, nil, at, j, m)
            place = (offset + j) * call.modes + m
            er, ei = load_complex(nil, call.e, place, call.modes, size - j)
            wr, wi = load_complex(nil, call.w, place, call.modes, size - j)
            store(base, 0, er)
            store(base, wide, ei)
            store(base, 2 * wide, wr)
            store(base, 3 * wide, wi)
        store(at.gains, j, load_part(nil, call.d, offset + j, size - j))


# Modes of a vector of lanes between memory and their rows, four at a time where the vector is whole.


@pasted
def _read(nil, call, source, lane, left, rows):
    """Complex [lanes, modes] -> rows, re and im of each mode; zeros where there is no source."""
    wide = width(nil)
    m = 0
    if source != 0 and left >= wide:
        while m + 4 <= call.modes:
            parts = load_four(nil, source, lane * call.modes + m, call.modes)
            for i in range(8):
                store(rows, (2 * m + i) * wide, parts[i])
            m += 4
    while m < call.modes:
        re = nil
        im = nil
        if source != 0:
            re, im = load_complex(nil, source, lane * call.modes + m, call.modes, left)
        store(rows, 2 * m * wide, re)
        store(rows, (2 * m + 1) * wide, im)
        m += 1


@pasted
def _write(nil, call, target, lane, left, rows):
    """The inverse of :func:`_read`."""
    wide = width(nil)
    m = 0
    if left >= wide:
        while m + 4 <= call.modes:
            at = rows + 2 * m * wide * nbytes(nil)
            store_four(
                target,
                lane * call.modes + m,
                call.modes,
                load(nil, at, 0),
                load(nil, at, wide),
                load(nil, at, 2 * wide),
                load(nil, at, 3 * wide),
                load(nil, at, 4 * wide),
                load(nil, at, 5 * wide),
                load(nil, at, 6 * wide),
                load(nil, at, 7 * wide),
            )
            m += 4
    while m < call.modes:
        re, im = load(nil, rows, 2 * m * wide), load(nil, rows, (2 * m + 1) * wide)
        store_complex(target, lane * call.modes + m, call.modes, re, im, left)
        m += 1


# ---------------------------------------------------------------- forward


@pasted
def _step_mode(call, nil, at, j, m, current):
    """One mode of a vector of lanes, in its rows; return its share of the drive."""
    wide = width(nil)
    zr, zi = load(nil, at.rows, 2 * m * wide), load(nil, at.rows, (2 * m + 1) * wide)
    zr, zi, share = advanced(_mode(call, nil, at, j, m), current, zr, zi)
    store(at.rows, 2 * m * wide, zr)
    store(at.rows, (2 * m + 1) * wide, zi)
    return share


@pasted
def _drive(call, nil, at, j, current):
    """One step of all modes of a vector, in their rows: ``y = d x + Re(sum w z)``, pair by pair."""
    y = load(nil, at.gains, j) * current
    m = 0
    other = call.modes - 1
    while m <= other:
        share = _step_mode(call, nil, at, j, m, current)
        if m < other:
            share = share + _step_mode(call, nil, at, j, other, current)
        y = y + share
        m += 1
        other -= 1
    return y


@once
def _step_vector(call, nil, unit, at, lead, offset, j, left):
    lane = lead * call.channels + offset + j
    out = lead * call.out_row + offset + j
    current = no_infinity(load_part(nil, call.x, lead * call.x_row + offset + j, left))
    _read(nil, call, call.z, lane, left, at.rows)
    y = _drive(call, nil, at, j, current)
    _write(nil, call, call.z_last, lane, left, at.rows)
    theta, inverse = rounded(call.theta, unit), rounded(call.inverse, unit)
    v, k, after = soma(call.soma, y, load_part(nil, call.r, lane, left), theta, inverse)
    store_part(call.r_last, lane, after, left)
    if call.y != 0:
        store_part(call.y, out, y, left)
    if call.m != 0:
        store_part(call.m, out, v * theta, left)
    store_part(call.s, out, spike(k) if call.burst == SINGLE else burst(k), left)


@kernel(PMSNStep, PMSNStepTensors)
def pmsn_step(first, last, scratch, unit, call):
    """A step of tiles of channels."""
    nil = zeros(unit)
    gains = scratch + call.tile * call.modes * STEP_ROWS * nbytes(nil)
    at = Scratch(0, scratch, gains, gains + call.tile * nbytes(nil), 0, 0, 0)
    for task in range(first, last):
        offset = task * call.tile
        size = min(call.tile, call.channels - offset)
        _gather(nil, call, at, offset, size)
        for lead in range(call.leads):
            expect_modes(nil, call.modes, size, call.z, call.z_last, (lead + 1) * call.channels + offset)
            for j in range(0, size, width(nil)):
                _step_vector(call, nil, unit, at, lead, offset, j, size - j)


# ---------------------------------------------------------------- backward


@pasted
def _clean(nil, call, rows, start):
    """Zeros in the rows for what is not finite; NaN there. ``start``: the rows after, to which they are copied."""
    wide = width(nil)
    lost = nil
    for m in range(call.modes):
        zr, zi, lost = only_finite(load(nil, rows, 2 * m * wide), load(nil, rows, (2 * m + 1) * wide), lost)
        for target in (rows, start):
            store(target, 2 * m * wide, zr)
            store(target, (2 * m + 1) * wide, zi)
    return lost


@pasted
def _drive_gradient(call, nil, unit, lead, offset, j, left, y, r):
    """What reaches the drive from the spike and from outside."""
    theta, inverse = rounded(call.theta, unit), rounded(call.inverse, unit)
    v, _k, _after = soma(call.soma, y, r, theta, inverse)
    g = nil
    if call.gs != 0:
        g = load_part(nil, call.gs, lead * call.gs_row + offset + j, left)
        if call.surrogate == GIVEN:
            g = g * load_part(nil, call.slope, lead * call.slope_row + offset + j, left)
        else:
            u = argument(call.burst, v, theta)
            g = g * slope(call.surrogate, u, rounded(call.p, unit), rounded(call.q, unit))
    if call.gm != 0:
        g = g + load_part(nil, call.gm, lead * call.gm_row + offset + j, left)
    if call.soma == FLOOR or call.soma == FIXED:  # they clamp the drive
        g = where_positive(y, g)
    if call.gy != 0:
        g = g + load_part(nil, call.gy, lead * call.gy_row + offset + j, left)
    return g


@pasted
def _add(nil, sums, index, share):
    store(sums, index, load(nil, sums, index) + share)


@once
def _back_vector(call, nil, unit, at, lead, offset, j, left):
    wide = width(nil)
    lane = lead * call.channels + offset + j
    lost, current = lost_and_clean(load_part(nil, call.x, lead * call.x_row + offset + j, left))
    _read(nil, call, call.z, lane, left, at.rows)
    lost = lost + _clean(nil, call, at.rows, at.start)
    y = _drive(call, nil, at, j, current) + lost
    r = load_part(nil, call.r, lane, left)
    g = _drive_gradient(call, nil, unit, lead, offset, j, left, y, r)
    total = load(nil, at.gains, j) * g
    _read(nil, call, call.gz, lane, left, at.grads)
    for m in range(call.modes):
        re, im = 2 * m * wide, (2 * m + 1) * wide
        cr, ci = load(nil, at.grads, re), load(nil, at.grads, im)
        lr, li, cr, ci = sent_back(_mode(call, nil, at, j, m), g, cr, ci)
        store(at.grads, re, cr)
        store(at.grads, im, ci)
        total = total + lr
        if call.gd != 0:
            er, ei = products(load(nil, at.start, re), load(nil, at.start, im), lr, li)
            wr, wi = products(load(nil, at.rows, re), load(nil, at.rows, im), g, nil)
            sums = SUMS * m * call.tile + j
            _add(nil, at.sums, sums, er)
            _add(nil, at.sums, sums + call.tile, ei)
            _add(nil, at.sums, sums + 2 * call.tile, wr)
            _add(nil, at.sums, sums + 3 * call.tile, wi)
    if call.gz0 != 0:
        _write(nil, call, call.gz0, lane, left, at.grads)
    if call.gd != 0:
        _add(nil, at.sums, SUMS * call.modes * call.tile + j, finite_product(current, g))
    store_part(call.gx, lead * call.out_row + offset + j, total, left)


@part
def _flush(nil, call, at, size):
    """Add the sums of some lanes to those in double and start them anew."""
    for k in range(SUMS * call.modes + 1):
        for j in range(0, size, width(nil)):
            add_to(at.totals, k * call.tile + j, load(nil, at.sums, k * call.tile + j))
            store(at.sums, k * call.tile + j, nil)


@part
def _write_sums(nil, call, at, offset, size):
    """The gradients of the weights of a tile of channels."""
    for j in range(0, size, width(nil)):
        left = size - j
        for m in range(call.modes):
            at_mode = SUMS * m * call.tile + j
            place = (offset + j) * call.modes + m
            for target, k in ((call.ge, 0), (call.gw, 2)):
                re = double_at(nil, at.totals, at_mode + k * call.tile)
                im = double_at(nil, at.totals, at_mode + (k + 1) * call.tile)
                store_complex(target, place, call.modes, re, im, left)
        gd = double_at(nil, at.totals, SUMS * call.modes * call.tile + j)
        store_part(call.gd, offset + j, gd, left)


@kernel(PMSNStepBack, PMSNStepBackTensors)
def pmsn_step_back(first, last, scratch, unit, call):
    """The adjoint of :func:`pmsn_step`, in the same tasks; an address 0 stands for zeros, or for what is not wanted."""
    nil = zeros(unit)
    row_bytes = call.tile * nbytes(nil)
    weights = scratch + (SUMS * call.modes + 1) * call.tile * 8
    gains = weights + call.modes * STEP_ROWS * row_bytes
    rows, size = gains + row_bytes, 2 * call.modes * width(nil) * nbytes(nil)
    at = Scratch(scratch, weights, gains, rows, rows + size, rows + 2 * size, rows + 3 * size)
    for task in range(first, last):
        offset = task * call.tile
        size = min(call.tile, call.channels - offset)
        _gather(nil, call, at, offset, size)
        for k in range((SUMS * call.modes + 1) * call.tile):
            store(at.totals, k, 0.0)
            store(at.sums, k, unit - unit)
        for lead in range(call.leads):
            start = (lead + 1) * call.channels + offset
            expect_modes(nil, call.modes, size, call.z, call.gz0, start)
            expect_modes(nil, call.modes, size, call.gz, 0, start)
            for j in range(0, size, width(nil)):
                _back_vector(call, nil, unit, at, lead, offset, j, size - j)
            if call.gd != 0 and (lead % ADDED == ADDED - 1 or lead == call.leads - 1):
                _flush(nil, call, at, size)
        if call.gd != 0:
            _write_sums(nil, call, at, offset, size)
