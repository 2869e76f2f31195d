"""What is said about a network: the rows of the tables, and the error."""

from __future__ import annotations

from dataclasses import dataclass


class DeployError(ValueError):
    """A network that cannot run on binary spikes with the same results."""


@dataclass(frozen=True)
class Layer:
    """What one layer of a binary network is given."""

    layer: str
    """Its path in the model."""
    kind: str
    """Its class or operation."""
    input: str
    """``"binary"``; ``"real"``: not from a spiking neuron, so the layer is as it was; ``"counts"``: as asked for."""
    form: str | None = None
    levels: int | None = None
    """The largest count that reaches it."""
    planes: int | None = None
    """Binary tensors per count: channels or sub-steps."""
    sum_bits: int | None = None
    """Bits of a signed integer that holds every sum of the layer, in units of its weight lattice."""
    bound: float | None = None
    """With ``exact=False``, how far a sum may be from the model's, given the same counts; None where it is the same."""


@dataclass(frozen=True)
class Rounded:
    """How far :func:`round_weights` moved the weights and the bias of one layer."""

    layer: str
    bits: int
    largest_move: float
    """In units of the weights."""
    relative: float
    """Root mean square of the moves over that of the weights."""
