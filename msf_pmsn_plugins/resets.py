"""How MSF resets, by name: the membrane after a step, and the adjoint.

``m`` is the membrane before the reset, ``f`` its firing at the first threshold (0 or 1, or a part of it: a soft firing
function), ``s`` its count, ``r`` the reset potential, ``q`` what a soft reset subtracts per spike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["RESETS", "Reset"]

Amount = float | Tensor
Through = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Reset:
    """A reset and its adjoint.

    ``forward(m, f, s, r, q) -> v`` is differentiable. Of the gradient ``g`` to v, ``kept(g, fired)`` reaches m where
    the firing, a bool, is held fixed, and ``through(g, m, r, q)`` reaches f and s (None: nothing). ``before_charge``
    tells where a delayed one acts: on the membrane left by the last step, or on the one charged from it, as snnTorch
    does. ``looks_at_first`` tells whether any gradient reaches f.
    """

    formula: str
    forward: Callable[[Tensor, Tensor, Tensor, float, Amount], Tensor]
    kept: Callable[[Tensor, Tensor], Tensor]
    through: Callable[[Tensor, Tensor, float, Amount], Through]
    before_charge: bool = True
    looks_at_first: bool = True


class _Select(torch.autograd.Function):
    """``r where fired else m``, with the gradient of ``(1 - f) m + f r``: NaN and inf pass as in a select."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, f: Tensor, r: float) -> Tensor:
        return torch.where(f > 0, r, m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        m, f, ctx.r = inputs
        ctx.save_for_backward(m, f)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        m, f = ctx.saved_tensors
        (g,) = grads
        return torch.where(f > 0, 0.0, g), g * (ctx.r - m), None


def select(m: Tensor, f: Tensor, s: Tensor, r: float, q: Amount) -> Tensor:
    """The hard reset for firing that is 0 or 1."""
    return _Select.apply(m, f, r)


def mix(m: Tensor, f: Tensor, s: Tensor, r: float, q: Amount) -> Tensor:
    """The hard reset for a soft firing function: a part of a spike resets a part."""
    return (1 - f) * m + f * r


RESETS: dict[str, Reset] = {
    "hard": Reset(
        "r where f else m",
        select,
        lambda g, fired: torch.where(fired, 0.0, g),  # NaN of a later step ends where a lane was reset
        lambda g, m, r, q: (g * (r - m), None),
    ),
    "soft": Reset(
        "m - q*s",
        lambda m, f, s, r, q: m - s * q,
        lambda g, fired: g,
        lambda g, m, r, q: (None, -(g * q)),
        before_charge=False,
        looks_at_first=False,
    ),
    "none": Reset(
        "m",
        lambda m, f, s, r, q: m,
        lambda g, fired: g,
        lambda g, m, r, q: (None, None),
        looks_at_first=False,
    ),
}
