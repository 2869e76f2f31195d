"""The charges of ``msf_pmsn_plugins.charges``, by the same names and in the same order of operations.

``k`` is what the formula takes for the rate, ``r`` the reset potential, ``b`` the input scale, ``g`` the gradient of
the membrane.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import divide

NAMES = (
    "decay",
    "if",
    "lif",
    "lif_decay_input",
    "simple_lif",
    "simple_lif_decay_input",
    "lif_product",
    "lif_rest_zero_decay_input",
    "plif",
    "plif_decay_input",
    "plif_product",
)


@triton.jit
def factor(CHARGE: tl.constexpr, k):
    """What the formula takes for ``k``, from a rate in memory; a constant comes from the host as that."""
    if CHARGE == "lif_product":
        k = 1.0 - divide(tl.full((), 1.0, k.dtype), k)
    elif CHARGE == "plif_product":
        k = 1.0 - k
    return k


@triton.jit
def charge(CHARGE: tl.constexpr, x, v, k, r, b):
    """The membrane ``m`` that the input ``x`` makes of ``v``."""
    if CHARGE == "decay":
        m = tl.where(r == 0.0, k * v + b * x, r + k * (v - r) + b * x)
    elif CHARGE == "if":
        m = v + x
    elif CHARGE == "lif":
        m = v - divide(v - r, k) + x
    elif CHARGE == "lif_decay_input":
        m = v + divide(x - (v - r), k)
    elif CHARGE == "simple_lif":
        m = v + divide(r - v, k) + x
    elif CHARGE == "simple_lif_decay_input":
        m = v + divide(r - v + x, k)
    elif CHARGE == "lif_rest_zero_decay_input":
        m = v + divide(x - v, k)
    elif CHARGE == "plif":
        m = v - (v - r) * k + x
    elif CHARGE == "plif_decay_input":
        m = v + (x - (v - r)) * k
    else:
        tl.static_assert(CHARGE == "lif_product" or CHARGE == "plif_product")
        m = v * k + x
    return m


@triton.jit
def charge_backward(CHARGE: tl.constexpr, g, k, b):
    """The gradients to ``x`` and ``v``."""
    gx = g
    gv = g
    if CHARGE == "decay":
        gx = b * g
        gv = k * g
    elif CHARGE == "lif" or CHARGE == "simple_lif":
        gv = g - divide(g, k)
    elif CHARGE == "lif_decay_input" or CHARGE == "simple_lif_decay_input":  # noqa: SIM114  # Triton 3.2: two at most
        gx = divide(g, k)
        gv = g - gx
    elif CHARGE == "lif_rest_zero_decay_input":
        gx = divide(g, k)
        gv = g - gx
    elif CHARGE == "plif":
        gv = g - g * k
    elif CHARGE == "plif_decay_input":
        gx = g * k
        gv = g - gx
    elif CHARGE == "lif_product" or CHARGE == "plif_product":
        gv = k * g
    return gx, gv


@triton.jit
def rate_gradient(CHARGE: tl.constexpr, g, x, v, r):
    """The gradient to the rate, where it may be learned; ``v`` is the membrane before the charge."""
    if CHARGE == "decay":
        gk = g * (v - r)
    elif CHARGE == "plif":
        gk = -g * (v - r)
    elif CHARGE == "plif_decay_input":
        gk = g * (x - (v - r))
    else:
        tl.static_assert(CHARGE == "plif_product")
        gk = -(g * v)
    return gk
