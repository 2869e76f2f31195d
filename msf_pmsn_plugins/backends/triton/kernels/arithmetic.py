"""Arithmetic that rounds alike on every device and under the interpreter.

Nothing is fused but by ``tl.fma`` (the launcher says so to the compiler). No number of a neuron is a Python float in
these files: it would reach a kernel as float32, whatever the dtype of the state.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    """``x / y`` rounded to nearest: ``/`` of two float32 is approximate on a device."""
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def rint(x):
    """The nearest integer, of two the even one."""
    # Beside 1.5 * 2**23 (2**52) float32 (float64) has integers only; a larger x is one already.
    if x.dtype == tl.float64:
        nearest = tl.where(tl.abs(x) < 2251799813685248.0, (x + 6755399441055744.0) - 6755399441055744.0, x)
    else:
        nearest = tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)
    return nearest


@triton.jit
def remainder(x, y):
    """What is left of ``x >= 0`` after all whole ``y > 0``."""
    left = tl.fma(-tl.floor(divide(x, y)), y, x)
    left = tl.where(left < 0.0, left + y, left)  # the quotient was rounded up to an integer
    return tl.where(left >= y, left - y, left)


@triton.jit
def exp(x):
    """``e**x`` within two units of the last place; in float32 0 below the normal numbers."""
    if x.dtype == tl.float64:
        power = tl.exp(x)
    else:
        # Comparisons, not min and max: NaN stays.
        x = tl.where(x > 89.0, 89.0, x)
        x = tl.where(x < -87.25, -128.0, x)
        n = rint(x * 1.44269504088896341)
        # log(2) in two parts: the first has so few bits that its products with n are exact.
        r = x - n * 0.693359375
        r = r + n * 2.12194440e-4
        p = 1.9875691500e-4 * r + 1.3981999507e-3
        p = p * r + 8.3334519073e-3
        p = p * r + 4.1665795894e-2
        p = p * r + 1.6666665459e-1
        p = p * r + 5.0000001201e-1
        bits = (tl.where(n < -126.0, 0.0, n + 127.0)).to(tl.int32) << 23
        power = (p * (r * r) + r + 1.0) * bits.to(tl.float32, bitcast=True)
    return power
