"""How a single-compartment neuron charges: one step ``m = charge(x, v)`` and its adjoint.

``decay`` is the published MSF. The others repeat the host frameworks' formulas in the hosts' own order of
operations, so that a swapped neuron computes the same bits as the one it replaces. ``k`` is the decay, ``tau`` or
``q = sigmoid(w)`` of the formula, ``r`` the reset potential, ``b`` the input scale (``decay`` only).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["CHARGES", "Charge"]

Rate = float | Tensor


@dataclass(frozen=True)
class Charge:
    """A charge and its adjoint.

    ``forward(x, v, k, r, b) -> m``; ``backward(g, k, b) -> (gx, gv)``; ``rate_grad(g, x, v, r) -> gk``, per element,
    where ``k`` may be learned; ``rate`` names what ``k`` is.
    """

    formula: str
    rate: str  # "decay" | "tau" | "w" | "none"
    forward: Callable[[Tensor, Tensor, Rate, float, float], Tensor]
    backward: Callable[[Tensor, Rate, float], tuple[Tensor, Tensor]]
    rate_grad: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None


def _decay(x: Tensor, v: Tensor, k: Rate, r: float, b: float) -> Tensor:
    x = x if b == 1.0 else b * x
    return k * v + x if r == 0.0 else r + k * (v - r) + x


def _decay_back(g: Tensor, k: Rate, b: float) -> tuple[Tensor, Tensor]:
    return (g if b == 1.0 else b * g), k * g


CHARGES: dict[str, Charge] = {
    "decay": Charge("decay*(v - r) + r + b*x", "decay", _decay, _decay_back, lambda g, x, v, r: g * (v - r)),
    "if": Charge("v + x", "none", lambda x, v, k, r, b: v + x, lambda g, k, b: (g, g)),
    "lif": Charge(
        "v - (v - r)/tau + x",
        "tau",
        lambda x, v, k, r, b: v - (v - r) / k + x,
        lambda g, k, b: (g, g - g / k),
    ),
    "lif_decay_input": Charge(
        "v + (x - (v - r))/tau",
        "tau",
        lambda x, v, k, r, b: v + (x - (v - r)) / k,
        lambda g, k, b: (g / k, g - g / k),
    ),
    "simple_lif": Charge(
        "v + (r - v)/tau + x",
        "tau",
        lambda x, v, k, r, b: v + (r - v) / k + x,
        lambda g, k, b: (g, g - g / k),
    ),
    "simple_lif_decay_input": Charge(
        "v + (r - v + x)/tau",
        "tau",
        lambda x, v, k, r, b: v + (r - v + x) / k,
        lambda g, k, b: (g / k, g - g / k),
    ),
    "lif_product": Charge(
        "v*(1 - 1/tau) + x",
        "tau",
        lambda x, v, k, r, b: v * (1.0 - 1.0 / k) + x,
        lambda g, k, b: (g, g * (1.0 - 1.0 / k)),
    ),
    "lif_rest_zero_decay_input": Charge(
        "v + (x - v)/tau",
        "tau",
        lambda x, v, k, r, b: v + (x - v) / k,
        lambda g, k, b: (g / k, g - g / k),
    ),
    "plif": Charge(
        "v - (v - r)*sigmoid(w) + x",
        "w",
        lambda x, v, k, r, b: v - (v - r) * k + x,
        lambda g, k, b: (g, g - g * k),
        lambda g, x, v, r: -g * (v - r),
    ),
    "plif_decay_input": Charge(
        "v + (x - (v - r))*sigmoid(w)",
        "w",
        lambda x, v, k, r, b: v + (x - (v - r)) * k,
        lambda g, k, b: (g * k, g - g * k),
        lambda g, x, v, r: g * (x - (v - r)),
    ),
    "plif_product": Charge(
        "v*(1 - sigmoid(w)) + x",
        "w",
        lambda x, v, k, r, b: v * (1.0 - k) + x,
        lambda g, k, b: (g, g * (1.0 - k)),
        lambda g, x, v, r: -(g * v),
    ),
}
