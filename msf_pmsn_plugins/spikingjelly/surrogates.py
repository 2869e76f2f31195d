"""SpikingJelly's surrogate objects as what computes their gradients: one of ours, or the object itself."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from .. import formulas
from ..formulas import standing_for
from ..surrogate import Custom, Surrogate, is_soft
from .version import FUNCTIONAL

__all__ = ["translate"]

# Derivatives that 2.0.0 computes by formulas of its own, not through the object's autograd, in float32 and half.
NAMED = {"Sigmoid": "sigmoid", "ATan": "atan"}


FORMULAS = {"SoftSign": formulas.soft_sign, "SuperSpike": formulas.super_spike, "Erf": formulas.erf}
# Of the others, what kernels take for the object's own derivative, and its parameters.
OTHERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "DeterministicPass": (formulas.straight_through, ()),
    "FakeNumericalGradient": (formulas.fake_numerical_gradient, ("alpha",)),
    "LeakyKReLU": (formulas.leaky_k_relu, ("leak", "k")),
    "LogTailedReLU": (formulas.log_tailed_relu, ("alpha",)),
    "NonzeroSignLogAbs": (formulas.nonzero_sign_log_abs, ("alpha",)),
    "PiecewiseExp": (formulas.piecewise_exp, ("alpha",)),
    "PiecewiseLeakyReLU": (formulas.piecewise_leaky_relu, ("w", "c")),
    "PiecewiseQuadratic": (formulas.piecewise_quadratic, ("alpha",)),
    "QPseudoSpike": (formulas.q_pseudo_spike, ("alpha",)),
    "Rect": (formulas.rect, ("alpha",)),
    "S2NN": (formulas.s2nn, ("alpha", "beta")),
    "Sigmoid": ("sigmoid", ("alpha",)),
    "SquarewaveFourierSeries": (formulas.squarewave_fourier_series, ("n", "T_period")),
}
PARAMETERS = tuple(sorted({name for _, names in OTHERS.values() for name in names}))


class BySteps:
    """A surrogate object that must itself be given each gradient: its own order of operations is kept to the bit."""

    by_steps = True

    def __init__(self, function: Any) -> None:
        self.function = function

    @property
    def soft(self) -> bool:
        return is_soft(self.function)

    def __call__(self, u: Tensor) -> Tensor:
        return self.function(u)


def translate(function: Any, dtype: torch.dtype, detach_reset: bool, exact: bool) -> Any:
    """What stands for the host's surrogate object ``function`` on an input of ``dtype``.

    ``exact``: what computes its gradients to the bit, even if that walks step by step.
    0.0.0.0.14, and 2.0.0 in float64, go through the object's own autograd; there only ATan with a detached reset has
    the order of our op.
    """
    kind, alpha = type(function), getattr(function, "alpha", None)
    own = "forward" in function.__dict__  # somebody has put in another
    if kind.__module__ != surrogate.__name__ or own or not function.spiking:
        return BySteps(function) if exact else function
    name = kind.__name__
    by_formula = FUNCTIONAL and dtype != torch.float64
    if isinstance(alpha, (int, float)):
        if name in NAMED and (by_formula or (name == "ATan" and detach_reset)):
            return Surrogate(NAMED[name], float(alpha))
        if name == "Erf" and not exact and 0 < alpha < math.inf:  # the normal density
            return Surrogate("gaussian", math.sqrt(0.5) / alpha)
        if name in FORMULAS and by_formula:
            return Custom(functools.partial(FORMULAS[name], alpha=float(alpha)))
    if exact:
        return BySteps(function)
    if name not in OTHERS or torch.compiler.is_compiling():  # which cannot trace how it is tried out
        return function
    formula, names = OTHERS[name]
    parameters = {one: getattr(function, one, None) for one in names}
    return standing_for(function, formula, parameters) or function
