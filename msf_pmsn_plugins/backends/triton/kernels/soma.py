"""The soma of PMSN: one step of charge, fire and reset, and where its surrogate is read.

The membrane ``v`` and the residual ``r`` are in units of the threshold ``theta``, drives ``y`` in volts. NaN never
fires and stays NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import divide, remainder, rint
from .surrogates import slope

RESETS = ("floor", "serial", "none", "cumulative")
BURSTS = ("", "nearest", "sawtooth")


@triton.jit
def soma(RESET: tl.constexpr, BURST: tl.constexpr, y, r, theta):
    """The spike or count, the membrane before the reset, the residual after it."""
    if RESET == "fixed":
        v, k, after = fixed_point(divide(tl.where(y < 0.0, 0.0, y), theta), r)
    elif RESET == "floor":
        v = r + divide(tl.where(y < 0.0, 0.0, y), theta)  # not max, which would turn NaN into 0
        k = tl.floor(v)
        after = v - k
    elif RESET == "serial":
        v = r + divide(y, theta)
        k = tl.floor(v)
        after = v - tl.where(k < 0.0, 0.0, k)
    elif RESET == "none":
        v = divide(y, theta)
        k = tl.floor(v)
        after = r
    else:
        tl.static_assert(RESET == "cumulative")
        v = r + divide(y, theta)
        k = tl.floor(v)
        after = v
    if BURST == "":
        s = tl.where(k >= 1.0, 1.0, 0.0)
    else:
        s = tl.where(k >= 1.0, k, 0.0)
    return s, v, after


@triton.jit
def fixed_point(drive, r):
    """The published reset with the residual on a grid of 2**-24 thresholds, where sums are exact in any order."""
    steps = drive.to(tl.float64)
    rest = r.to(tl.float64)
    lost = (steps != steps) | (rest != rest)
    steps = tl.where(steps < 274877906944.0, steps, 274877906944.0)  # 2**38
    steps = tl.where(lost, 0.0, rint(steps * 16777216.0)).to(tl.int64)
    c = steps + tl.where(lost, 0.0, rint(rest * 16777216.0)).to(tl.int64)
    nan = drive + r
    v = tl.where(lost, nan, (c.to(tl.float64) * (1.0 / 16777216.0)).to(r.dtype))
    k = tl.where(lost, nan, (c >> 24).to(r.dtype))
    after = tl.where(lost, nan, ((c & 16777215).to(tl.float64) * (1.0 / 16777216.0)).to(r.dtype))
    return v, k, after


@triton.jit
def slope_argument(BURST: tl.constexpr, v, theta):
    """Where the surrogate is read, in volts."""
    volts = v * theta
    if BURST == "nearest":
        k = rint(v)
        u = volts - theta * tl.where(k < 1.0, 1.0, k)
    elif BURST == "sawtooth":
        u = remainder(tl.abs(volts - theta), theta)
    else:
        u = volts - theta
    return u


@triton.jit
def drive_gradient(
    RESET: tl.constexpr, BURST: tl.constexpr, SURROGATE: tl.constexpr, gs, gm, gy, y, r, theta, p, q
):
    """The gradient of the drive from those of the spike, the membrane and the drive (None: zero); the next residual.

    With the surrogate ``""``, ``gs`` comes multiplied by the slope. With the reset "cumulative" each drive also moves
    all later membranes: the gradient is that of the membrane, and ``gy`` is left out.
    """
    _s, v, after = soma(RESET, BURST, y, r, theta)
    g = gs
    if SURROGATE != "":
        g = gs * slope(SURROGATE, slope_argument(BURST, v, theta), p, q)
    if gm is not None:
        g += gm
    if RESET == "floor" or RESET == "fixed":
        g = tl.where(y > 0.0, g, 0.0)  # a negative drive was clamped
    if gy is not None and RESET != "cumulative":
        g += gy
    return g, after
