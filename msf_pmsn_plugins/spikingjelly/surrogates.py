"""SpikingJelly's surrogate objects as what computes their gradients: one of ours, or the object itself."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from ..surrogate import Custom, Surrogate
from .version import FUNCTIONAL

__all__ = ["translate"]

# Derivatives that 2.0.0 computes by formulas of its own, not through the object's autograd, in float32 and half.
NAMED = {"Sigmoid": "sigmoid", "ATan": "atan"}


def _soft_sign(u: Tensor, alpha: float) -> Tensor:
    z = 1 / alpha + u.abs()
    return 1 / (2 * alpha * z * z)


def _super_spike(u: Tensor, alpha: float) -> Tensor:
    z = 1 + u.abs()
    return alpha / (z * z)


def _erf(u: Tensor, alpha: float) -> Tensor:
    z = alpha * u
    return (alpha / math.sqrt(math.pi)) * torch.exp(-z * z)


FORMULAS = {"SoftSign": _soft_sign, "SuperSpike": _super_spike, "Erf": _erf}


class BySteps:
    """A surrogate object that must itself be given each gradient: its own order of operations is kept to the bit."""

    by_steps = True

    def __init__(self, function: Any) -> None:
        self.function = function
        self.soft = getattr(function, "soft", False)

    def __call__(self, u: Tensor) -> Tensor:
        return self.function(u)


def translate(function: Any, dtype: torch.dtype, detach_reset: bool, exact: bool) -> Any:
    """What stands for the host's surrogate object ``function`` on an input of ``dtype``.

    ``exact``: what computes its gradients to the bit, even if that walks step by step.
    0.0.0.0.14, and 2.0.0 in float64, go through the object's own autograd; there only ATan with a detached reset has
    the order of our op.
    """
    kind, alpha = type(function), getattr(function, "alpha", None)
    if kind.__module__ != surrogate.__name__ or not function.spiking or not isinstance(alpha, (int, float)):
        return BySteps(function) if exact else function
    name, alpha = kind.__name__, float(alpha)
    by_formula = FUNCTIONAL and dtype != torch.float64
    if name in NAMED and (by_formula or (name == "ATan" and detach_reset)):
        return Surrogate(NAMED[name], alpha)
    if name in FORMULAS and by_formula:
        return Custom(functools.partial(FORMULAS[name], alpha=alpha))
    return BySteps(function) if exact else function
