"""The somas of PMSN: the residual and its reset, and the membrane at which the surrogate is read.

``y`` is the drive in units of the threshold; a soma gives the membrane before the reset, whole thresholds and the next
residual, likewise. Where nothing is removed, the membrane stands for the whole thresholds: both reach 1 at once.
"""

from __future__ import annotations

import math

from .lanes import fma, formula, one, one_of, part, where


def _relu(y):
    return where(y <= 0.0, 0.0, y)  # NaN stays


def _floor(y, r):
    v = r + _relu(y)
    k = v.floor()
    return v, k, v - k


def _serial(y, r):
    v = r + y
    k = v.floor()
    k = where(k < 0.0, 0.0, k)
    return v, k, v - k


def _none(y, r):
    return y, y.floor(), r


def _cumulative(y, r):
    v = r + y
    return v, v.floor(), v


def _fixed(y, r):
    """Steps of 2**-24 in double, whole thresholds and the rest apart, so that every number is exact."""
    exact = _relu(y).widen()
    exact = where(exact > 2.0**38, 2.0**38, exact)
    whole = exact.floor()
    c = ((exact - whole) * 2.0**24).rint() + (r.widen() * 2.0**24).rint()
    parts = c / 2.0**24
    carry = parts.floor()
    return tuple(sums.round_to(y) for sums in (whole + parts, whole + carry, parts - carry))


SOMAS = {"floor": _floor, "serial": _serial, "none": _none, "cumulative": _cumulative, "fixed": _fixed}
SOMA_CODES = {name: code for code, name in enumerate(SOMAS)}
FLOOR, CUMULATIVE, FIXED = (SOMA_CODES[name] for name in ("floor", "cumulative", "fixed"))

_soma = one_of(SOMAS.values())  # (code, y, r)


@part
def soma(code, y, r, theta, inverse):
    """The same for ``y`` in volts; ``inverse`` is ``1/theta`` where that is exact, else 0."""
    return _soma(code, y / theta if inverse == 0 else y * inverse, r)


@formula
def spike(k):
    """One spike, however many whole thresholds are removed."""
    return one(k >= 1.0, k)


@formula
def burst(k):
    """A spike for each of them."""
    return where(k >= 1.0, k, 0.0)


# ---------------------------------------------------------------- where the surrogate is read, volts


def _distance(v, theta):
    return v * theta - theta


def _nearest(v, theta):
    k = v.rint()
    return v * theta - where(k < 1.0, 1.0, k) * theta


def _sawtooth(v, theta):
    return abs(v * theta - theta) % theta.spread(v.count)


BURSTS = {"": _distance, "nearest": _nearest, "sawtooth": _sawtooth}
BURST_CODES = {name: code for code, name in enumerate(BURSTS)}
SINGLE = BURST_CODES[""]

argument = one_of(BURSTS.values())  # (code, v, theta)


# ---------------------------------------------------------------- numbers that are not finite


@formula
def no_infinity(x):
    """NaN where x is not finite: it makes its lane NaN."""
    return x + (x - x)


@formula
def lost_and_clean(x):
    """NaN where x is not finite, else 0; and x with zeros there."""
    lost = x - x
    return lost, where(lost.equals(0.0), x, 0.0)


@formula
def only_finite(re, im, lost):
    """A complex number, zero where it is not finite; and NaN there in ``lost``."""
    finite = (abs(re) < math.inf) & (abs(im) < math.inf)
    return where(finite, re, 0.0), where(finite, im, 0.0), where(finite, lost, math.nan)


@formula
def where_positive(y, g):
    """The gradient past a clamp of ``y`` at zero."""
    return where(y > 0.0, g, 0.0)


@formula
def multiply_add(x, y, c):
    """``x*y + c``, with one rounding where the machine can."""
    return fma(x, y, c)
