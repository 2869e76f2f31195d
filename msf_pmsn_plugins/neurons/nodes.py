"""Our neurons inside a network: bare, or held by a node of a framework as its ``neuron``. No framework is imported."""

from __future__ import annotations

from typing import Any

from .base import Neuron

__all__ = ["held_by", "is_node", "takes_sequences"]


def held_by(module: Any) -> Neuron | None:
    """The neuron that ``module`` is, or holds as a node; None for all else."""
    if isinstance(module, Neuron):
        return module
    return module.neuron if is_node(module) else None


def is_node(module: Any) -> bool:
    """Whether it is a node: it holds a neuron and carries the state of it. A network may call one of its own neuron."""
    return isinstance(getattr(module, "neuron", None), Neuron) and hasattr(module, "carried")


def takes_sequences(module: Any) -> bool:
    """Whether one call of a neuron or node, ours or a framework's, takes all steps."""
    return (
        isinstance(module, Neuron)
        or getattr(module, "step_mode", "s") == "m"
        or bool(getattr(module, "sequence", False))
    )
