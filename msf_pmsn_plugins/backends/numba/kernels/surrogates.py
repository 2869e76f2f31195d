"""The derivatives of the surrogates, in the order of operations of ``msf_pmsn_plugins/surrogate.py``.

Each takes ``u``, the distance to the threshold in volts, and the two numbers that its entry in :data:`SURROGATES`
makes of the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .lanes import FLOAT, INT, LONG, Value, fma, fnma, ir, one, one_of, where


class Surrogate(NamedTuple):
    """A derivative and its two numbers."""

    slope: Callable[..., Any]
    numbers: Callable[[float], tuple[float, float]]
    dyadic: Callable[..., Any] | None = None  # with the same bits, for widths whose inverse is exact


def exact_inverse(number: float) -> float:
    """``1/number`` where a product with it has the bits of the division, and costs less: for powers of two. Else 0."""
    return 1 / number if abs(math.frexp(number)[0]) == 0.5 and 2.0**-100 < abs(number) < 2.0**100 else 0.0


def _exp(x: Value) -> Value:
    """``exp(x)``, all but always correctly rounded; overflows to inf, underflows gradually, keeps NaN.

    ``2**n exp(r)`` with ``n = rint(x/ln 2)``: a Taylor series of ``exp(r)``, ``|r| < 0.35``, and the power of two in
    two halves, each of which is a normal number. A call of the C library would not be vectorised.
    """
    single = x.element == FLOAT
    low, high = (-104.0, 89.0) if single else (-746.0, 710.0)  # beyond, the result is 0 or inf
    # ln 2 in two parts: n times the first is exact
    coarse, fine = (0.693359375, -2.12194440e-4) if single else (0.693145751953125, 1.42860682030941723212e-6)
    order = 7 if single else 13
    word, bias, mantissa = (INT, 127, 23) if single else (LONG, 1023, 52)
    words = ir.VectorType(word, x.count)

    near = where(x >= low, x, low)  # NaN becomes a bound, and NaN again at the end
    near = where(near <= high, near, high)
    n = (near * (1 / math.log(2))).rint()
    whole = fnma(n, x.constant(coarse), near)
    r = fnma(n, x.constant(fine), whole)
    rest = fnma(n, x.constant(fine), whole - r)  # what r was rounded by
    series = x.constant(1 / math.factorial(order))
    for k in range(order - 1, 1, -1):
        series = fma(series, r, x.constant(1 / math.factorial(k)))
    # 1 + r + .., with one rounding: near 1 the slope of a sigmoid has all its digits from the last one here
    head = 1.0 + r
    series = head + ((r - (head - 1.0)) + fma(series, r * r, rest))
    power = x.b.fptosi(n.value, ir.VectorType(INT, x.count))
    power = x.make(power if single else x.b.sext(power, words))
    half = x.make(x.b.ashr(power.value, x.constant(1, word).value))
    for part in (half, power - half):
        bits = x.b.shl((part + bias).value, x.constant(mantissa, word).value)
        series = series * x.make(x.b.bitcast(bits, x.value.type))
    return where(x.equals(x), series, x)


def _rectangular(u, width, height):
    return one(abs(u) < width, u) * height


def _sigmoid(u, alpha, _):
    s = 1.0 / (1.0 + _exp(-(u * alpha)))
    return (1.0 - s) * s * alpha


def _atan(u, factor, height):
    t = u * factor
    return 1.0 / (1.0 + t * t) * height  # torch divides a number by a tensor so


def _gaussian(u, sigma, area):
    t = u / sigma
    return _exp(t * t * -0.5) / area


def _triangle(u, width, _):
    t = 1.0 - abs(u) / width
    return where(t < 0.0, 0.0, t) / width


def _dyadic_triangle(u, _, inverse):
    t = 1.0 - abs(u) * inverse
    return where(t < 0.0, 0.0, t) * inverse


SURROGATES: dict[str, Surrogate] = {
    "rectangular": Surrogate(_rectangular, lambda width: (width, 0.5 / width)),
    "sigmoid": Surrogate(_sigmoid, lambda alpha: (alpha, 0.0)),
    "atan": Surrogate(_atan, lambda alpha: (math.pi / 2 * alpha, alpha / 2)),
    "gaussian": Surrogate(_gaussian, lambda sigma: (sigma, sigma * math.sqrt(2 * math.pi))),
    "triangle": Surrogate(_triangle, lambda width: (width, exact_inverse(width)), _dyadic_triangle),
}

_SLOPES = [known.slope for known in SURROGATES.values()]
_SLOPES += [known.dyadic for known in SURROGATES.values() if known.dyadic]

slope = one_of(_SLOPES)  # (code, u, p, q)
GIVEN = len(_SLOPES)  # no formula of ours: the kernel is given the slopes


class Slope(NamedTuple):
    """What a kernel is told of a surrogate: the number of its formula, and the two numbers of that.

    A surrogate without a name is one whose slopes are given.
    """

    code: int
    p: float
    q: float

    @classmethod
    def of(cls, name: str, width: float) -> Slope:
        if not name:
            return cls(GIVEN, 0.0, 0.0)
        if name not in SURROGATES:
            raise ValueError(f"the numba backend has no surrogate {name!r}; known: {', '.join(SURROGATES)}")
        known = SURROGATES[name]
        dyadic = known.dyadic if exact_inverse(width) else None
        return cls(_SLOPES.index(dyadic or known.slope), *known.numbers(width))
