"""The same network on integer hardware, memory included, beside ANNs of the same layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..tables import Table
from .costs import FLOAT32, SRAM_PJ_PER_BIT, integer
from .layers import Neurons, Synapses


@dataclass(frozen=True)
class Hardware:
    """An integer machine for spikes: bits of a weight, of an event's address and of a membrane, and its memory."""

    weight_bits: int = 8
    pj_per_bit: float = SRAM_PJ_PER_BIT
    address_bits: int = 16
    word_bits: int = 32


@dataclass(frozen=True)
class Machine:
    """The net on one kind of arithmetic, nJ a sample."""

    machine: str
    synapses: float
    weights: float
    """Reading them."""
    activations: float
    """Writing and reading them."""
    neurons: float
    state: float
    total: float
    relative: float
    """To the 8-bit ANN."""


class Parts(NamedTuple):
    """Energy by what it is spent on, pJ a sample."""

    synapses: float
    weights: float
    activations: float
    neurons: float = 0.0
    state: float = 0.0


def machines(
    synapses: Sequence[Synapses], neurons: Sequence[Neurons], steps: int, hardware: Hardware, of: str
) -> Table[Machine]:
    """Three ANNs, then spikes sent one by one and as numbers; ``of``, what the figures are of, stands below."""
    spiking = f"{hardware.weight_bits}-bit weights"
    parts = {
        "ANN, 32-bit float": _ann(synapses, steps, 32, hardware),
        "ANN, 8-bit integers": _ann(synapses, steps, 8, hardware),
        "ANN, 4-bit integers": _ann(synapses, steps, 4, hardware),
        f"spikes one by one, {spiking}": _one_by_one(synapses, neurons, hardware),
        f"spikes as numbers, {spiking}": _as_numbers(synapses, neurons, hardware),
    }
    reference = sum(parts["ANN, 8-bit integers"]) or math.nan
    rows = (
        Machine(
            machine=name,
            total=sum(spent) / 1000,
            relative=sum(spent) / reference,
            **{part: energy / 1000 for part, energy in spent._asdict().items()},
        )
        for name, spent in parts.items()
    )
    heads = {name: f"{name}, nJ" for name in (*Parts._fields, "total")}
    return Table(rows, heads=heads, note=f"{of}; relative: to the 8-bit ANN")


def _ann(rows: Sequence[Synapses], steps: int, bits: int, on: Hardware) -> Parts:
    """Every layer once and dense; each weight is read for each MAC, activations have the bits of weights."""
    dense, elements = sum(row.dense for row in rows) / steps, sum(row.elements for row in rows) / steps
    mac = FLOAT32.mac if bits == 32 else integer(bits, bits, on.word_bits).mac
    return Parts(dense * mac, dense * bits * on.pj_per_bit, 2 * elements * bits * on.pj_per_bit)


def _one_by_one(rows: Sequence[Synapses], neurons: Sequence[Neurons], on: Hardware) -> Parts:
    """A count k is k events: k addresses, k reads of each weight, k additions."""
    add, real = integer(on.word_bits, on.word_bits, on.word_bits).add, _real_mac(on)
    sent = sum(2 * (8 * _real_elements(row) + on.address_bits * row.spikes) for row in rows)
    return Parts(
        sum(row.macs * real + row.accumulates * add for row in rows),
        sum(row.macs + row.accumulates for row in rows) * on.weight_bits * on.pj_per_bit,
        sent * on.pj_per_bit,
        *_updates(neurons, on),
    )


def _as_numbers(rows: Sequence[Synapses], neurons: Sequence[Neurons], on: Hardware) -> Parts:
    """A count is one event with the bits of the layer's largest, and one multiplication with each weight."""
    real = _real_mac(on)

    def mac(row: Synapses) -> float:
        return integer(_bits(row), on.weight_bits, on.word_bits).mac

    sent = sum(2 * (8 * _real_elements(row) + (on.address_bits + _bits(row)) * row.fired) for row in rows)
    return Parts(
        sum(row.macs * real + row.events * mac(row) for row in rows),
        sum(row.macs + row.events for row in rows) * on.weight_bits * on.pj_per_bit,
        sent * on.pj_per_bit,
        *_updates(neurons, on),
    )


def _updates(neurons: Sequence[Neurons], on: Hardware) -> tuple[float, float]:
    """Of the neurons: their arithmetic in words, and the memory of their state."""
    words = integer(on.word_bits, on.word_bits, on.word_bits)
    arithmetic = sum(row.macs * words.mac + row.adds * words.add for row in neurons)
    return arithmetic, sum(row.reads + row.writes for row in neurons) * on.word_bits * on.pj_per_bit


def _real_mac(on: Hardware) -> float:
    return integer(8, on.weight_bits, on.word_bits).mac  # real inputs have 8 bits


def _real_elements(row: Synapses) -> float:
    return row.elements if row.input != "spikes" else 0.0


def _bits(row: Synapses) -> int:
    return max(1, math.ceil(math.log2(row.largest + 1)))
