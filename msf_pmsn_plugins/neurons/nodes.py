"""Our neurons inside a network: bare, or held by a node of a framework as its ``neuron``. No framework is imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Neuron
from .computed import value_of

__all__ = ["brief", "changed", "held_by", "is_node", "takes_sequences"]


def held_by(module: Any) -> Neuron | None:
    """The neuron that ``module`` is, or holds as a node; None for all else."""
    if isinstance(module, Neuron):
        return module
    return module.neuron if is_node(module) else None


def is_node(module: Any) -> bool:
    """Whether it is a node: it holds a neuron and carries the state of it. A network may call one of its own neuron."""
    if not isinstance(getattr(module, "neuron", None), Neuron):
        return False
    return hasattr(type(module), "carried") or "carried" in vars(module)  # asked of the object, it computes


def takes_sequences(module: Any) -> bool:
    """Whether one call of a neuron or node, ours or a framework's, takes all steps."""
    return (
        isinstance(module, Neuron)
        or getattr(module, "step_mode", "s") == "m"
        or bool(getattr(module, "sequence", False))
    )


def changed(held: Any, stock: dict[str, Any]) -> list[str]:
    """Which words of a neuron a stock neuron has other values of, ``stock``; None in the neuron says nothing."""
    lines = []
    for word, theirs in stock.items():
        own = value_of(held, word)
        if own is not None and not _same(own, theirs):
            lines.append(f"{word}={brief(own)} becomes {brief(theirs)}")
    return lines


def _same(own: Any, theirs: Any) -> bool:
    if isinstance(own, (str, bool)):
        return own == theirs
    a, b = (torch.as_tensor(value).detach().double().cpu() for value in (own, theirs))
    return bool(torch.isclose(a, b, rtol=1e-6, atol=0.0).all())


def brief(value: Any) -> str:
    """A setting in few letters: of a tensor its number or its shape."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{float(value.detach()):.6g}" if value.numel() == 1 else f"tensor {list(value.shape)}"
