"""The charges of ``msf_pmsn_plugins/charges.py``, in the hosts' own order of operations.

``k`` is the decay, tau or sigmoid(w) of the formula, ``r`` the reset potential. What leaves a charge backward is
``(gx, gv)``, the gradients of x and of the membrane before, and where the rate can be learned, its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .lanes import one_of

# ---------------------------------------------------------------- forward


def _linear(x, v, k, r):
    return k * v + x


def _linear_to_rest(x, v, k, r):
    return r + k * (v - r) + x


def _lif(x, v, k, r):
    return v - (v - r) / k + x


def _lif_decay_input(x, v, k, r):
    return v + (x - (v - r)) / k


def _simple_lif(x, v, k, r):
    return v + (r - v) / k + x


def _simple_lif_decay_input(x, v, k, r):
    return v + (r - v + x) / k


def _plif(x, v, k, r):
    return v - (v - r) * k + x


def _plif_decay_input(x, v, k, r):
    return v + (x - (v - r)) * k


# ---------------------------------------------------------------- backward


def _linear_back(g, k, scale):
    return g * scale, k * g


def _tau_back(g, k, scale):
    return g, g - g / k


def _tau_decay_input_back(g, k, scale):
    return g / k, g - g / k


def _plif_back(g, k, scale):
    return g, g - g * k


def _plif_decay_input_back(g, k, scale):
    return g * k, g - g * k


# ---------------------------------------------------------------- gradient of the rate


def _linear_rate(g, x, v, r):
    return g * (v - r)


def _plif_rate(g, x, v, r):
    return -g * (v - r)


def _plif_decay_input_rate(g, x, v, r):
    return g * (x - (v - r))


def _plif_product_rate(g, x, v, r):
    return -(g * v)


# ---------------------------------------------------------------- by name


class Charge(NamedTuple):
    """How the kernels compute a charge."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    rate: Callable[..., Any] | None = None  # None: the rate has no gradient
    factor: Callable[[Any], Any] | None = None  # k -> the factor on v, where the formula is factor*v + x
    has_rest: bool = True  # the formula knows the reset potential
    at_zero: Callable[..., Any] | None = None  # forward with the same bits where that is 0


CHARGES: dict[str, Charge] = {
    "decay": Charge(_linear_to_rest, _linear_back, _linear_rate, at_zero=_linear),
    "if": Charge(_linear, _linear_back, factor=lambda k: 1.0, has_rest=False),
    "lif": Charge(_lif, _tau_back),
    "lif_decay_input": Charge(_lif_decay_input, _tau_decay_input_back),
    "simple_lif": Charge(_simple_lif, _tau_back),
    "simple_lif_decay_input": Charge(_simple_lif_decay_input, _tau_decay_input_back),
    "lif_product": Charge(_linear, _linear_back, factor=lambda k: 1.0 - 1.0 / k, has_rest=False),
    "lif_rest_zero_decay_input": Charge(_lif_decay_input, _tau_decay_input_back, has_rest=False),
    "plif": Charge(_plif, _plif_back, _plif_rate),
    "plif_decay_input": Charge(_plif_decay_input, _plif_decay_input_back, _plif_decay_input_rate),
    "plif_product": Charge(
        _linear, _linear_back, _plif_product_rate, factor=lambda k: 1.0 - k, has_rest=False
    ),
}


def _different(functions: Sequence[Callable[..., Any] | None]) -> list[Callable[..., Any]]:
    return [function for function in dict.fromkeys(functions) if function is not None]


_FORWARD = _different([known.forward for known in CHARGES.values()])
_BACKWARD = _different([known.backward for known in CHARGES.values()])
_RATE = _different([known.rate for known in CHARGES.values()])

charge = one_of(_FORWARD)  # (code, x, v, k, r)
charge_back = one_of(_BACKWARD)  # (code, g, k, scale)
rate_gradient = one_of(_RATE)  # (code, g, x, v, r)
RATE_OF_INPUT = _RATE.index(_plif_decay_input_rate)  # the only one that reads x


class ChargeCodes(NamedTuple):
    """What a kernel is told of a charge: the numbers of its formulas."""

    forward: int
    backward: int
    rate: int

    @classmethod
    def of(cls, name: str, rest: float) -> ChargeCodes:
        known = CHARGES[name]
        forward = known.at_zero if known.at_zero and rest == 0.0 else known.forward
        rate = _RATE.index(known.rate) if known.rate else 0
        return cls(_FORWARD.index(forward), _BACKWARD.index(known.backward), rate)
