"""Our neurons inside a network: bare, or held by a node of a framework as its ``neuron``. No framework is imported."""

from __future__ import annotations

from typing import Any

from .base import Neuron

__all__ = ["held_by", "is_node", "takes_sequences"]


def held_by(module: Any) -> Neuron | None:
    """The neuron that ``module`` is, or holds; None for all else."""
    held = module if isinstance(module, Neuron) else getattr(module, "neuron", None)
    return held if isinstance(held, Neuron) else None


def is_node(module: Any) -> bool:
    """Whether it is a node: it holds a neuron and carries the state of it."""
    return held_by(module) not in (None, module) and hasattr(module, "carried")


def takes_sequences(module: Any) -> bool:
    """Whether one call of a neuron or node, ours or a framework's, takes all steps."""
    return (
        isinstance(module, Neuron)
        or getattr(module, "step_mode", "s") == "m"
        or bool(getattr(module, "sequence", False))
    )
