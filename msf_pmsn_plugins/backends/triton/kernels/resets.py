"""The resets of ``msf_pmsn_plugins.resets``, by the same names.

``fired`` is the firing at the first threshold, ``s`` the count, ``r`` the reset potential, ``q`` what a soft reset
subtracts per spike. A delayed reset acts on the charged membrane where it is soft, else on the one left by the
last step.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAMES = ("hard", "soft", "none")


@triton.jit
def after_reset(RESET: tl.constexpr, m, fired, s, r, q):
    """The membrane after the reset of ``m``."""
    if RESET == "hard":
        m = tl.where(fired, r, m)  # a select: NaN and inf must not leak out of a lane that was reset
    elif RESET == "soft":
        m = m - s * q
    else:
        tl.static_assert(RESET == "none")
    return m


@triton.jit
def kept_by_reset(RESET: tl.constexpr, g, fired):
    """What of the gradient to the membrane after the reset reaches the one before, the firing held fixed."""
    if RESET == "hard":
        g = tl.where(fired, 0.0, g)
    return g


@triton.jit
def through_spikes(RESET: tl.constexpr, LEVELS: tl.constexpr, gs, gv, m, first, total, r, q):
    """What reaches ``m`` through its spikes, from the gradients of the count and of the membrane after the reset.

    ``first`` and ``total`` are the slopes at the first threshold and at all together.
    """
    if RESET == "hard":
        g = (gs + gv * (r - m)) * first
        if LEVELS > 1:
            g = g + gs * (total - first)
    elif RESET == "soft":
        g = (gs - gv * q) * total
    else:
        g = gs * total
    return g
