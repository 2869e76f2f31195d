"""Derivatives of the hosts' surrogates, in few operations and such as torch vectorises.

A host's object gives its slopes through autograd: it fires once more, and compares and selects, each of which takes a
CPU as long as five products. Where the object gives what its formula gives (:func:`standing_for`), the formula is
used. ``u`` is the membrane over its threshold, in volts; results have its shape and dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .surrogate import Custom, FireFunction, Surrogate, slope_of

__all__ = ["Formula", "standing_for"]

Formula = Callable[..., Tensor]

# On both sides of the threshold and of 1, where formulas change; the smallest lie in any window around the threshold.
TRIED = [
    sign * u
    for u in (2**-30, *(k / 8 + 1 / 64 for k in (0, 1, 2, 3, 5, 7, 9, 13, 20)))
    for sign in (-1.0, 1.0)
]


def _where_above(value: Tensor, u: Tensor, bound: float) -> Tensor:
    """``value`` where ``u > bound``, else 0."""
    return torch.ops.aten.threshold_backward(value, u, bound)


def _where_below(value: Tensor, u: Tensor, bound: float) -> Tensor:
    """``value`` where ``u < bound``, else 0."""
    return _where_above(value, -u, -bound)


def _where_between(value: Tensor, u: Tensor, low: float, high: float) -> Tensor:
    """``value`` where ``low < u < high``, else 0."""
    return torch.ops.aten.hardtanh_backward(value, u, low, high)


def _either(there: Tensor, value: float, other: float) -> Tensor:
    """``value`` where ``there`` is 1, ``other`` where it is 0."""
    return there * value + (1 - there) * other


def _rising(u: Tensor, slope: float) -> Tensor:
    """``slope * |u| + 1`` in one operation."""
    return torch.rsub(u.abs(), 1.0, alpha=-slope)


def soft_sign(u: Tensor, alpha: float) -> Tensor:
    z = 1 / alpha + u.abs()
    return 1 / (2 * alpha * z * z)


def super_spike(u: Tensor, alpha: float) -> Tensor:
    z = 1 + u.abs()
    return alpha / (z * z)


def erf(u: Tensor, alpha: float) -> Tensor:
    z = alpha * u
    return (alpha / math.sqrt(math.pi)) * torch.exp(-z * z)


def straight_through(u: Tensor) -> Tensor:
    return torch.ones_like(u)


def rect(u: Tensor, alpha: float) -> Tensor:
    return _where_between(torch.full_like(u, alpha), u, -0.5 / alpha, 0.5 / alpha)


def piecewise_quadratic(u: Tensor, alpha: float) -> Tensor:
    distance = u.abs().clamp(max=2 / alpha)  # finite, for the difference of two infinities is none
    value = distance * -(alpha**2) + alpha
    return value - _where_above(value, distance, 1 / alpha)


def piecewise_exp(u: Tensor, alpha: float) -> Tensor:
    return (u.abs() * -alpha).exp() * (alpha / 2)


def nonzero_sign_log_abs(u: Tensor, alpha: float) -> Tensor:
    return (u.abs() + 1 / alpha).reciprocal()


def piecewise_leaky_relu(u: Tensor, w: float, c: float) -> Tensor:
    return _either(_where_between(torch.ones_like(u), u, -w, w), 1 / (2 * w), c)


def squarewave_fourier_series(u: Tensor, n: int, T_period: float) -> Tensor:
    waves = [torch.cos(u * ((2 * i - 1) * 2 * math.pi / T_period)) for i in range(1, n)]
    return sum(waves[1:], waves[0]) * (4 / T_period) if waves else torch.zeros_like(u)


def s2nn(u: Tensor, alpha: float, beta: float) -> Tensor:
    below = _where_below(torch.full_like(u, alpha), u, 0.0)
    above = beta / (u.clamp(min=0) + 1)
    above = above - _where_below(above, u, 0.0)
    return above + torch.ops.aten.sigmoid_backward(below, torch.sigmoid(u * alpha))


def q_pseudo_spike(u: Tensor, alpha: float) -> Tensor:
    return _rising(u, 2 / (alpha - 1)) ** -alpha


def leaky_k_relu(u: Tensor, leak: float, k: float) -> Tensor:
    return _either(_where_below(torch.ones_like(u), u, 0.0), leak, k)


def fake_numerical_gradient(u: Tensor, alpha: float) -> Tensor:
    return u.abs().reciprocal().clamp(max=alpha)


def log_tailed_relu(u: Tensor, alpha: float) -> Tensor:
    slope = _where_above(u.clamp(min=1).reciprocal(), u, 0.0)
    return slope if alpha == 0 else slope + _either(_where_above(torch.ones_like(u), u, 0.0), 0.0, alpha)


def fast_sigmoid(u: Tensor, slope: float) -> Tensor:
    return _rising(u, slope) ** -2


def sparse_fast_sigmoid(u: Tensor, slope: float, B: float) -> Tensor:
    return _where_above(fast_sigmoid(u, slope), u, B)


def logistic(u: Tensor, slope: float) -> Tensor:
    s = torch.sigmoid(u.abs() * -slope)  # the half on which 1 - s loses no digits
    return torch.ops.aten.sigmoid_backward(torch.full_like(u, slope), s)


def triangular(u: Tensor, threshold: float) -> Tensor:
    return leaky_k_relu(u, threshold, -threshold)


def heaviside(u: Tensor) -> Tensor:
    return _where_above(torch.ones_like(u), u, 0.0)


def spike_rate_escape(u: Tensor, beta: float, slope: float) -> Tensor:
    return ((u - 1).abs() * -beta).exp() * slope


def standing_for(
    surrogate: FireFunction, formula: Formula | str, parameters: Mapping[str, Any]
) -> Surrogate | Custom | None:
    """What stands for a host's object, or None where the object itself is needed.

    Args:
        surrogate: the object, ``u -> spikes``.
        formula: one of this module, or the name of a :class:`Surrogate` whose width is the one parameter.
        parameters: those of the object, by the names that the formula has for them.

    The object is tried out at some membranes: other versions of a host, and parameters that are no numbers, keep it.
    """
    if not all(type(value) in (int, float) for value in parameters.values()):
        return None
    try:
        # Out of sight of counters, and with numbers where a mode makes tensors without any.
        with _disable_current_modes(), torch.random.fork_rng(devices=[]):
            u = torch.tensor(TRIED, dtype=torch.float32, device="cpu")
            candidate = _made(formula, parameters)
            expected, given = slope_of(surrogate, u), slope_of(candidate, u)
            known = expected.isfinite()
            same = bool(known.any()) and torch.allclose(given[known], expected[known], rtol=1e-5, atol=1e-7)
    except (ArithmeticError, ValueError, TypeError, RuntimeError):
        return None  # the object, when it is called, will say so
    return candidate if same else None


def _made(formula: Formula | str, parameters: Mapping[str, float]) -> Surrogate | Custom:
    if not isinstance(formula, str):
        return Custom(functools.partial(formula, **parameters))
    (width,) = parameters.values()
    return Surrogate(formula, float(width))
