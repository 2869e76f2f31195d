"""What belongs to the lanes of a block: numbers of the neuron, valid steps, thresholds.

``numbers`` is the table that ``arguments.table`` lays out, in the dtype of the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Places in the table; the thresholds are the last.
RATE, AMOUNT, INPUT_SCALE, V_RESET, WIDTH, P, Q, THRESHOLDS = (tl.constexpr(i) for i in range(8))


@triton.jit
def number(values, STEP: tl.constexpr, numbers, at: tl.constexpr, lane, inside):
    """A number of each lane: from ``values``, one for all (step 0) or for each (step 1); if None the constant."""
    if values is None:
        found = tl.load(numbers + at)
    else:
        found = tl.load(values + lane * STEP, mask=inside, other=1)
    return found


@triton.jit
def valid_steps(lengths, index, inside, steps):
    """The valid steps of each lane. Lengths on a device are not checked by anyone: kept within 0 to ``steps``."""
    if lengths is None:
        own = steps
    else:
        own = tl.load(lengths + index, mask=inside, other=0)
        own = tl.minimum(tl.maximum(own, 0), steps)
    return own


@triton.jit
def threshold(numbers, d, first):
    """Threshold ``d``; where the ``first`` ones are tensors, the table holds the distances from them."""
    theta = tl.load(numbers + THRESHOLDS + d)
    if first is not None:
        theta = first + theta
    return theta


@triton.jit
def thresholds(numbers, first):
    """The first four, read once; what is beyond the last is NaN."""
    return (
        threshold(numbers, 0, first),
        threshold(numbers, 1, first),
        threshold(numbers, 2, first),
        threshold(numbers, 3, first),
    )


@triton.jit
def count(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS: tl.constexpr):
    """How many thresholds ``m`` reaches."""
    s = (m >= theta0).to(m.dtype)
    if LEVELS > 1:
        s += (m >= theta1).to(m.dtype)
        s += (m >= theta2).to(m.dtype)
        s += (m >= theta3).to(m.dtype)
    for d in range(4, LEVELS):
        s += (m >= threshold(numbers, d, first)).to(m.dtype)
    return s


@triton.jit
def windows(m, theta0, theta1, theta2, theta3, numbers, first, LEVELS: tl.constexpr):
    """How many thresholds lie nearer than the width of the surrogate."""
    width = tl.load(numbers + WIDTH)
    n = (tl.abs(m - theta0) < width).to(tl.int32)
    if LEVELS > 1:
        n += (tl.abs(m - theta1) < width).to(tl.int32)
        n += (tl.abs(m - theta2) < width).to(tl.int32)
        n += (tl.abs(m - theta3) < width).to(tl.int32)
    for d in range(4, LEVELS):
        n += (tl.abs(m - threshold(numbers, d, first)) < width).to(tl.int32)
    return n
