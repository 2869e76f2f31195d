"""Neurons: what one update of one neuron costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..neurons.nodes import held_by
from .rules import EnergyError


class Update(NamedTuple):
    """What one step of one neuron costs; ``reads`` and ``writes`` of its state in words of 32 bits."""

    macs: float
    adds: float = 0
    reads: float = 1
    writes: float = 1


def _pmsn(neuron: Any, steps: int) -> Update:
    hidden = neuron.compartments - 1
    return Update(8 * hidden, reads=1 + 2 * hidden, writes=1 + 2 * hidden)


UPDATES: dict[str, Callable[[Any, int], Update]] = {
    # the papers' formulas, times n neurons and T steps: LIF E_MAC, PSN T E_MAC, masked and sliding PSN k E_MAC,
    # PMSN 8 (compartments - 1) E_MAC
    **dict.fromkeys(
        ("IFNode", "LIFNode", "ParametricLIFNode", "SimpleIFNode", "SimpleLIFNode")
        + ("NonSpikingIFNode", "NonSpikingLIFNode", "Leaky", "Lapicque", "RLeaky", "ParallelIF"),
        lambda neuron, steps: Update(1),
    ),
    "PSN": lambda neuron, steps: Update(steps, reads=steps),
    "MaskedPSN": lambda neuron, steps: Update(neuron.k, reads=neuron.k),
    "SlidingPSN": lambda neuron, steps: Update(neuron.k, reads=neuron.k),
    "PMSN": _pmsn,
    # ours: the comparisons with the second threshold and above, as additions
    "MSF": lambda neuron, steps: Update(1, neuron.D - 1),
    # ours: its matrix of compartments, and an input gain each
    "MSN": lambda neuron, steps: Update(
        neuron.compartments**2 + neuron.compartments, reads=neuron.compartments, writes=neuron.compartments
    ),
    # ours: two leaky integrators
    **dict.fromkeys(("Synaptic", "RSynaptic"), lambda neuron, steps: Update(2, reads=2, writes=2)),
}
BASES = ("BaseNode", "SpikingNeuron", "Neuron", "NonSpikingBaseNode", "SimpleBaseNode")


def family(module: nn.Module, known: Mapping[str, Any]) -> str | None:
    """The first class of ``module`` that ``known`` names, "" for another neuron, None for what is no neuron."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((n for n in names if n in known), "" if any(n in BASES for n in names) else None)


def neuron_update(
    module: nn.Module, steps: int = 1, updates: Mapping[str, Any] | None = None
) -> Update | None:
    """What one update of one neuron of ``module`` costs; None if ``module`` is no neuron.

    Args:
        module: a neuron of ours, of SpikingJelly or of snnTorch.
        steps: length of the sequence, for PSN.
        updates: further formulas by class name, as in :data:`UPDATES`; or an :class:`Update`.

    Raises:
        EnergyError: a neuron without a formula.
    """
    module = held_by(module) or module
    known = {**UPDATES, **(updates or {})}
    kind = family(module, known)
    if kind == "":
        name = type(module).__name__
        raise EnergyError(
            f"no formula for the update of {name}: give one, updates={{{name!r}: energy.Update(macs=..)}}"
        )
    if kind is None:
        return None
    formula = known[kind]
    return formula if isinstance(formula, Update) else formula(module, steps)
