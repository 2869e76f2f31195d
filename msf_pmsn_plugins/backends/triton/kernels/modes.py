"""The lanes of PMSN, their modes, and the recurrence of these.

Sequences are [T, L, C, K]: lane (l*C + c)*K + k. Parameters belong to the channel c. Modes are the rows of a tile
[MODES, BLOCK], a power of two; complex numbers lie as pairs of reals. Rows beyond COUNT have e = -1 and w = 0: they
hold the last input and weigh nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .lanes import valid_steps

# Places in the table of constants.
THETA, P, Q = (tl.constexpr(i) for i in range(3))


@triton.jit
def piece(v, inside, lengths, steps, lanes, columns, span, CHUNKED: tl.constexpr):
    """The lane of a piece of time, its first step, and how many of its steps are valid. Piece v is a lane itself, or
    with CHUNKED chunk v // lanes, of ``span`` steps, of lane v % lanes.
    """
    lane = v
    begin = v * 0
    if CHUNKED:
        lane = v % lanes
        begin = v // lanes * span
    valid = valid_steps(lengths, lane // columns, inside, steps) - begin
    return lane, begin, tl.minimum(tl.maximum(valid, 0), span)


@triton.jit
def pairs(memory, index, inside, absent, COUNT: tl.constexpr, MODES: tl.constexpr):
    """Complex numbers [.., COUNT] at ``index``, real and imaginary; ``absent`` in the rows beyond COUNT."""
    mode = tl.arange(0, MODES)[:, None]
    real = (mode < COUNT) & inside[None, :]
    at = memory + 2 * (index[None, :] * COUNT + mode)
    return tl.load(at, mask=real, other=absent), tl.load(at + 1, mask=real, other=0.0)


@triton.jit
def save_pairs(memory, index, inside, re, im, COUNT: tl.constexpr, MODES: tl.constexpr):
    """The inverse of :func:`pairs`."""
    mode = tl.arange(0, MODES)[:, None]
    real = (mode < COUNT) & inside[None, :]
    at = memory + 2 * (index[None, :] * COUNT + mode)
    tl.store(at, re, mask=real)
    tl.store(at + 1, im, mask=real)


@triton.jit
def advance(re, im, er, ei, xr, xi):
    """``z + (e z + x)``: beside 1 a rounded factor a = 1 + e would have few digits. ``xi`` None is 0."""
    change = tl.fma(er, re, tl.fma(-ei, im, xr))
    if xi is None:
        turn = tl.fma(er, im, ei * re)
    else:
        turn = tl.fma(er, im, tl.fma(ei, re, xi))
    return re + change, im + turn


@triton.jit
def drive(re, im, wr, wi, gain, x):
    """``Re(sum w z) + d x``"""
    return tl.sum(tl.fma(wr, re, -(wi * im)), axis=0) + gain * x


@triton.jit
def clean_state(re, im):
    """A state with zeros for what is not finite, and NaN for each lane that had such, else 0."""
    lost = (re - re) + (im - im)
    return tl.where(lost == 0.0, re, 0.0), tl.where(lost == 0.0, im, 0.0), tl.sum(lost, axis=0)
