"""The modes of PMSN in scratch memory, and one step of each.

A tile is a run of lanes whose channels are the same in every unit (a leading lane, or a few of them where they are
short): their coefficients are gathered once, and sums over lanes are kept for all units of a task. Of each vector and
mode the scratch holds its rows one after the other: e, w, z and, backward, p = dz/da and the sums of g z and g p, each
with its real and imaginary part.

Modes are added in pairs, m with modes - 1 - m. Where all pairs are conjugate (so PMSN is initialised), one of the two
is computed and its share doubled, which gives the same bits.
"""

from __future__ import annotations

from .lanes import all_true, fma, fnma, formula, nbytes, part, pasted, width
from .memory import get, load, load_complex, put, put_row, row, store, store_complex, will_read, will_write
from .somas import only_finite

FORWARD_ROWS = 6  # of a mode
BACKWARD_ROWS = 12
E, W, Z, P, GZ, GP = range(0, 12, 2)  # first row of each; the next is its imaginary part


# ---------------------------------------------------------------- one step


def _advance(x, base):
    """``z <- z + (e z + x)``, that is ``a z + x`` with ``a = 1 + e``: beside 1 the digits of e would be rounded off."""
    er, ei, wr, wi, zr, zi = (row(x, base, i) for i in range(6))
    re = zr + fma(er, zr, fnma(ei, zi, x))
    im = zi + fma(er, zi, ei * zr)
    put_row(re, base, Z)
    put_row(im, base, Z + 1)
    return fnma(wi, im, wr * re)


@formula
def step(base, x):
    """One step of a mode; return ``Re(w z)``."""
    return _advance(x, base)


@formula
def step_and_sums(base, x, g):
    """The same with ``p = dz/da``, ``p <- a p + z``; before that, the sums take ``g`` times the last z and p."""
    er, ei, zr, zi, pr, pi = (row(x, base, i) for i in (E, E + 1, Z, Z + 1, P, P + 1))
    for i, last in enumerate((zr, zi, pr, pi)):
        put_row(fma(g, last, row(x, base, GZ + i)), base, GZ + i)
    put_row(pr + fma(er, pr, fnma(ei, pi, zr)), base, P)
    put_row(pi + fma(er, pi, fma(ei, pr, zi)), base, P + 1)
    return _advance(x, base)


@formula
def last_sums(base, g):
    """Add ``g`` times z and p to the sums."""
    for i in range(4):
        put_row(fma(g, row(g, base, Z + i), row(g, base, GZ + i)), base, GZ + i)


@formula
def adjoint(base, g):
    """``lam = conj(w) g + c``, ``c <- lam + conj(e) lam``, with c in the rows of p; return ``Re(lam)``."""
    er, ei, wr, wi = (row(g, base, i) for i in range(4))
    re = fma(wr, g, row(g, base, P))
    im = fnma(wi, g, row(g, base, P + 1))
    put_row(re + fma(er, re, ei * im), base, P)
    put_row(im + fnma(ei, re, er * im), base, P + 1)
    return re


# ---------------------------------------------------------------- pairs


@formula
def _conjugate(base, here, there):
    """Whether the complex rows ``here`` and ``there`` are conjugate, as a mask. ``base`` gives the type."""
    re, im = (row(base, here, i) for i in range(2))
    other_re, other_im = (row(base, there, i) for i in range(2))
    return re.equals(other_re) & im.equals(-other_im)


@pasted
def are_pairs(nil, base, rows, first, modes):
    """Whether the complex rows ``first`` of the modes at ``base`` are conjugate in pairs, in all lanes."""
    row_bytes = width(nil) * nbytes(nil)
    paired = True
    for m in range(modes // 2):
        here = base + (m * rows + first) * row_bytes
        there = base + ((modes - 1 - m) * rows + first) * row_bytes
        if not all_true(_conjugate(nil, here, there)):
            paired = False
    return paired


@pasted
def computed(m, modes, folded):
    """The mode that stands for ``m``: the other of its pair, whose conjugate it is, where those are folded."""
    if folded and m > modes - 1 - m:
        return modes - 1 - m
    return m


# ---------------------------------------------------------------- in and out


@part
def gather_weights(nil, unit, call, states, rows, gains, offset):
    """Gather e, w and d for the tile at ``offset`` of a unit, zeros beyond; return whether modes are in pairs."""
    wide = width(nil)
    modes = call.modes
    most = min(call.tile, call.leap - offset)
    paired = True
    for i in range(call.tile):
        c = (offset + i) % call.inner // call.per_channel
        gain = unit - unit
        if i < most:
            gain = load(unit, call.d, c)
        store(gains, i, gain)
        at = (i // wide * modes * rows) * wide + i % wide
        for m in range(modes):
            here = 2 * (c * modes + m)
            there = 2 * (c * modes + modes - 1 - m)
            for source, first in ((call.e, E), (call.w, W)):
                re = unit - unit
                im = unit - unit
                if i < most:
                    re = load(unit, source, here)
                    im = load(unit, source, here + 1)
                    if m < modes // 2 and (
                        re != load(unit, source, there) or im != -load(unit, source, there + 1)
                    ):
                        paired = False
                store(states, at + first * wide, re)
                store(states, at + (first + 1) * wide, im)
            at += rows * wide
    return paired


@part
def read_modes(nil, call, states, rows, start, size, poison):
    """Gather z of a unit, and zero p and the sums where there are such rows; return whether it is conjugate pairs.

    Without z (0) they are at rest. ``poison``, where it is given: zero what is not finite, and poison its lane.
    """
    wide = width(nil)
    vector = rows * wide * nbytes(nil)
    modes = call.modes
    paired = True
    for j in range(0, size, wide):
        base = states + j // wide * modes * vector
        lost = nil
        for m in range(modes):
            re = nil
            im = nil
            if call.z != 0:
                re, im = load_complex(nil, call.z, (start + j) * modes + m, modes, size - j)
            if poison != 0:
                re, im, lost = only_finite(re, im, lost)
            store(base, (m * rows + Z) * wide, re)
            store(base, (m * rows + Z + 1) * wide, im)
            for i in range(P, rows):
                store(base, (m * rows + i) * wide, nil)
        if poison != 0:
            store(poison, j, lost)
        if not are_pairs(nil, base, rows, Z, modes):
            paired = False
    return paired


@part
def write_modes(nil, call, states, rows, first, target, start, size, folded):
    """Scatter the complex rows ``first``, z or the gradient of z, to complex [lanes, modes]."""
    wide = width(nil)
    vector = rows * wide * nbytes(nil)
    modes = call.modes
    for j in range(0, size, wide):
        base = states + j // wide * modes * vector
        for m in range(modes):
            source = computed(m, modes, folded)
            re = load(nil, base, (source * rows + first) * wide)
            im = load(nil, base, (source * rows + first + 1) * wide)
            if source != m:
                im = -im
            store_complex(target, (start + j) * modes + m, modes, re, im, size - j)


@part
def expect_modes(nil, modes, size, read, written, start):
    """Ask for complex [lanes, modes] of a unit ahead: one that will be read, one that will be written; 0 is none."""
    for at in range(2 * start * modes, 2 * (start + size) * modes, width(nil)):
        if read != 0:
            will_read(nil, read, at)
        if written != 0:
            will_write(nil, written, at)


@formula
def add_product(base, index, imaginary, gr, gi, pr, pi):
    """Add ``g conj(p)`` to double numbers at ``index`` (real) and ``imaginary`` in memory."""
    gr, gi, pr, pi = (x.widen() for x in (gr, gi, pr, pi))
    put(get(pr, base, index) + (gr * pr + gi * pi), base, index)
    put(get(pr, base, imaginary) + (gi * pr - gr * pi), base, imaginary)
