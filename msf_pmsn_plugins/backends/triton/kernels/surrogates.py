"""The surrogate derivatives of ``msf_pmsn_plugins.surrogate``: the same names, the same order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable

import triton
import triton.language as tl

from .arithmetic import divide, exp

# The two constants p and q of each surrogate with the width a, in double; rounded once.
CONSTANTS: dict[str, Callable[[float], tuple[float, float]]] = {
    "rectangular": lambda a: (a, 0.5 / a),
    "sigmoid": lambda a: (a, 0.0),
    "atan": lambda a: (math.pi / 2 * a, a / 2),
    "gaussian": lambda a: (a, a * math.sqrt(2 * math.pi)),
    "triangle": lambda a: (a, 0.0),
}


@triton.jit
def slope(SURROGATE: tl.constexpr, u, p, q):
    """The derivative at ``u``."""
    if SURROGATE == "rectangular":
        at = tl.where(tl.abs(u) < p, q, 0.0)
    elif SURROGATE == "sigmoid":
        e = exp(-(p * u))
        s = divide(tl.full((), 1.0, u.dtype), 1.0 + e)
        at = (1.0 - s) * s * p
    elif SURROGATE == "atan":
        t = u * p
        at = divide(q, 1.0 + t * t)
    elif SURROGATE == "gaussian":
        t = divide(u, p)
        at = divide(exp(-0.5 * (t * t)), q)
    else:
        tl.static_assert(SURROGATE == "triangle")
        t = 1.0 - divide(tl.abs(u), p)
        at = divide(tl.where(t < 0.0, 0.0, t), p)  # not max, which would turn NaN into 0
    return at
