"""Surrogate derivatives by name.

The forward is always the step ``u >= 0`` (ties fire); only the derivative differs. Every surrogate has unit
area, and its one parameter is a width ``a`` in the unit of ``u``:

=============  ============================================  =========
name           derivative g(u)                               default a
=============  ============================================  =========
rectangular    ``1/(2a)`` where ``|u| < a`` (strict)         0.5
sigmoid        ``a sig(a u) (1 - sig(a u))``                 4.0
atan           ``a / (2 (1 + (pi a u / 2)^2))``              2.0
gaussian       normal density with standard deviation a      0.4
triangle       ``max(0, 1 - |u|/a) / a``                     1.0
=============  ============================================  =========

For ``sigmoid`` and ``atan`` a larger ``a`` is a *narrower* surrogate (it is SpikingJelly's and snnTorch's alpha).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SURROGATES", "Custom", "Surrogate", "as_surrogate", "fire", "slope"]


def _rectangular(u: Tensor, a: float) -> Tensor:
    return (u.abs() < a).to(u.dtype) * (0.5 / a)


def _sigmoid(u: Tensor, a: float) -> Tensor:
    s = torch.sigmoid(a * u)
    return (1 - s) * s * a  # SpikingJelly's order of operations: gradients equal to the bit


def _atan(u: Tensor, a: float) -> Tensor:
    t = u * (math.pi / 2 * a)
    return (a / 2) / (1 + t * t)  # likewise


def _gaussian(u: Tensor, a: float) -> Tensor:
    return torch.exp(-0.5 * (u / a) ** 2) / (a * math.sqrt(2 * math.pi))


def _triangle(u: Tensor, a: float) -> Tensor:
    return (1 - u.abs() / a).clamp(min=0) / a


@dataclass(frozen=True)
class _Kind:
    derivative: Callable[[Tensor, float], Tensor]
    width: float


SURROGATES: dict[str, _Kind] = {
    "rectangular": _Kind(_rectangular, 0.5),
    "sigmoid": _Kind(_sigmoid, 4.0),
    "atan": _Kind(_atan, 2.0),
    "gaussian": _Kind(_gaussian, 0.4),
    "triangle": _Kind(_triangle, 1.0),
}


def slope(u: Tensor, name: str, width: float) -> Tensor:
    """The derivative g(u) of the named surrogate. Same shape as ``u``."""
    return SURROGATES[name].derivative(u, width)


Derivative = Callable[[Tensor], Tensor]


class _Fire(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, derivative: Derivative) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Derivative], output: Tensor) -> None:
        u, ctx.derivative = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.derivative(u), None


@dataclass(frozen=True)
class Surrogate:
    """A step ``u >= 0`` whose derivative is one of :data:`SURROGATES`.

    Calling it fires: ``Surrogate("atan")(v - v_threshold)`` returns 0/1 in the dtype of its input, so it also
    serves as the ``surrogate_function`` of a stock neuron.

    Args:
        name: a key of :data:`SURROGATES`.
        width: the parameter ``a``; the default depends on the name.

    Raises:
        ValueError: unknown name, or a width that is not a positive finite number.
    """

    name: str
    width: float = None  # type: ignore[assignment]  # None becomes the default of the name

    def __post_init__(self) -> None:
        if self.name not in SURROGATES:
            raise ValueError(f"unknown surrogate {self.name!r}; known: {', '.join(SURROGATES)}")
        if self.width is None:
            object.__setattr__(self, "width", SURROGATES[self.name].width)
        if not 0 < self.width < math.inf:
            raise ValueError(f"surrogate width must be a positive finite number, got {self.width!r}")

    def __call__(self, u: Tensor) -> Tensor:
        return _Fire.apply(u, self.derivative)

    def derivative(self, u: Tensor) -> Tensor:
        """The derivative g(u), for plots and checks. Same shape as ``u``."""
        return slope(u, self.name, self.width)


@dataclass(frozen=True)
class Custom:
    """A step ``u >= 0`` with a derivative of your own; runs on the plain step loop.

    Args:
        derivative: a torch function ``u -> g(u)``, element by element, in the shape of ``u``.
    """

    derivative: Derivative

    def __call__(self, u: Tensor) -> Tensor:
        return _Fire.apply(u, self.derivative)


FireFunction = Callable[[Tensor], Tensor]


def as_surrogate(value: str | Surrogate | FireFunction) -> Surrogate | FireFunction:
    """Turn a constructor argument into a surrogate.

    A name gives that surrogate at its default width; a callable ``u -> spikes`` (a :class:`Custom`, a framework's
    surrogate object) is taken as it is and runs on the plain step loop.
    """
    if isinstance(value, str):
        return Surrogate(value)
    if callable(value) and not isinstance(value, type):
        return value
    raise TypeError(
        f"surrogate must be a name ({', '.join(SURROGATES)}), a Surrogate or a callable u -> spikes, "
        f"got {f'the class {value.__name__}: give an object' if isinstance(value, type) else type(value).__name__}"
    )


def fire(u: Tensor, surrogate: Surrogate | FireFunction) -> Tensor:
    """Spikes of ``u`` in its dtype, with the surrogate's derivative."""
    return surrogate(u).to(u.dtype)
