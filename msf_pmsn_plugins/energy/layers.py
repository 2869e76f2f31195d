"""What one layer did: the rows of the tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Synapses:
    """One layer with weights, or one product of activations, a sample."""

    layer: str
    """Path in the net, and the operation."""
    input: str
    """``"real"``, ``"spikes"``, or ``"both"`` if it changed from call to call."""
    largest: float
    """The largest count."""
    rate: float
    """Mean count of an input element; of a real input, the share that is not 0."""
    dense: float
    macs: float
    accumulates: float
    events: float
    """See :class:`Work`."""
    elements: float
    """Input elements."""
    fired: float
    """Those that are not 0."""
    spikes: float
    """Their sum."""


@dataclass(frozen=True)
class Neurons:
    """One layer of neurons, a sample."""

    layer: str
    kind: str
    updates: float
    """Neurons times steps."""
    macs: float
    adds: float
    reads: float
    writes: float
    """Words of state."""
    spikes: float
    """Sum of what it emitted."""


@dataclass(frozen=True)
class Part:
    """Energy of one part, nJ a sample."""

    part: str
    macs: float
    accumulates: float
    total: float


@dataclass(frozen=True)
class Unknown:
    """What could not be counted."""

    name: str
    layer: str
    calls: int
    remedy: str
