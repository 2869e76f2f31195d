"""The figures of a count, and what they cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from ..tables import Table
from .costs import FLOAT32, SRAM_PJ_PER_BIT, Costs
from .layers import Neurons, Part, Synapses, Unknown
from .machines import Hardware, Machine, machines
from .rules import Operand, Work
from .updates import Update


def _not_zero(x: Tensor) -> float:
    """Of a sparse tensor, among the values that it stores."""
    if x.is_nested:
        return sum(_not_zero(part) for part in x.unbind())
    stored = x if x.layout == torch.strided else x.coalesce().values() if x.is_sparse else x.values()
    return float((stored != 0).sum())


@dataclass
class SynapseSums:
    """What one layer with weights did in all samples."""

    work: Work = field(default_factory=Work)
    elements: float = 0.0
    fired: float = 0.0
    spikes: float = 0.0
    largest: float = 0.0
    real: bool = False
    counted: bool = False
    """Whether any of its operands were real, and any spikes."""

    def add(self, work: Work, operands: list[Operand]) -> None:
        self.work = self.work.plus(work)
        for x, spikes in operands:
            self.elements += x.numel()
            self.fired += _not_zero(x)
            if spikes is None:
                self.real = True
            else:
                self.counted = True
                self.spikes += float(spikes.counts.sum())
                self.largest = max(self.largest, float(spikes.counts.max()) if x.numel() else 0.0)

    def row(self, layer: str, samples: int) -> Synapses:
        active = self.spikes if self.counted else self.fired
        return Synapses(
            layer=layer,
            input="both" if self.real and self.counted else "real" if self.real else "spikes",
            largest=self.largest,
            rate=active / max(self.elements, 1e-30),
            elements=self.elements / samples,
            fired=self.fired / samples,
            spikes=self.spikes / samples,
            **{name: value / samples for name, value in self.work._asdict().items()},
        )


@dataclass
class NeuronSums:
    """What one layer of neurons did in all samples."""

    updates: float = 0.0
    macs: float = 0.0
    adds: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    spikes: float = 0.0

    def add(self, update: Update, updates: int, spikes: float) -> None:
        self.updates += updates
        self.spikes += spikes
        self.macs += update.macs * updates
        self.adds += update.adds * updates
        self.reads += update.reads * updates
        self.writes += update.writes * updates


class Counts:
    """What :func:`counting` gives. All figures are a sample, or of all that ran if nobody said how many samples did."""

    def __init__(self, samples: int | None) -> None:
        self._samples = samples or 1
        self._of = "per sample" if samples else "of all that ran"
        self._synapses: dict[str, SynapseSums] = {}
        self._neurons: dict[tuple[str, str], NeuronSums] = {}
        self._unknown: dict[Unknown, int] = {}  # without its calls, and they

    @property
    def synapses(self) -> Table[Synapses]:
        """The layers with weights and the products of activations, in the order of their first call."""
        rows = (sums.row(layer, self._samples) for layer, sums in self._synapses.items())
        columns = ["layer", "input", "largest", "rate", "dense", "macs", "accumulates"]
        return Table(rows, columns, note=f"operations {self._of}; rate: mean count of an input element")

    @property
    def neurons(self) -> Table[Neurons]:
        """The layers of neurons, in the order of their first call."""
        rows = (
            Neurons(layer, kind, **{name: value / self._samples for name, value in asdict(sums).items()})
            for (layer, kind), sums in self._neurons.items()
        )
        columns = ["layer", "kind", "updates", "macs", "adds", "spikes"]
        return Table(rows, columns, note=f"operations {self._of}")

    @property
    def unknown(self) -> Table[Unknown]:
        """What has no rule or formula: it is missing in all figures."""
        return Table(replace(what, calls=calls) for what, calls in self._unknown.items())

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the synapses."""
        return sum(row.macs for row in self.synapses)

    @property
    def accumulates(self) -> float:
        """Accumulates of the synapses: the sum of counts times fan-outs."""
        return sum(row.accumulates for row in self.synapses)

    def energy(self, costs: Costs = FLOAT32) -> Table[Part]:
        """Energy as the papers count it, nJ a sample: MACs and accumulates of floats, no memory."""
        rows = [_part(row.layer, row.macs, row.accumulates, costs) for row in self.synapses]
        rows += [_part(f"{row.layer} ({row.kind})", row.macs, row.adds, costs) for row in self.neurons]
        sums = (sum(getattr(row, name) for row in rows) for name in ("macs", "accumulates", "total"))
        heads = {"macs": "macs, nJ", "accumulates": "accumulates, nJ", "total": "total, nJ"}
        return Table([*rows, Part("total", *sums)], heads=heads, note=self._of)

    def compare(
        self,
        steps: int,
        weight_bits: int = 8,
        pj_per_bit: float = SRAM_PJ_PER_BIT,
        address_bits: int = 16,
        word_bits: int = 32,
    ) -> Table[Machine]:
        """The same net on integer hardware, memory included, beside a float and two quantized ANNs, nJ a sample.

        An ANN runs every layer once, densely, for the ``steps`` of the spiking net, and reads each weight for each MAC;
        its activations have the bits of its weights. A spiking layer skips zeros. Its counts travel as events, one by
        one (each an address, its weights read and added), or as numbers (one event with the bits of the largest count,
        one multiplication with each weight). Real inputs have 8 bits. Neurons compute with words of ``word_bits`` and
        keep their state in memory.

        Args:
            steps: how many steps the net runs for what the ANN does once; 1 for sequences, where an ANN takes every
                step too.
            weight_bits: of the spiking net.
            pj_per_bit: energy of reading or writing one bit of memory.
            address_bits: of an event.
            word_bits: of membranes and sums.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
        hardware = Hardware(weight_bits, pj_per_bit, address_bits, word_bits)
        return machines(self.synapses, self.neurons, steps, hardware, self._of)

    def __str__(self) -> str:
        parts = [str(self.synapses), str(self.neurons)]
        if self._unknown:
            parts.append(f"not counted:\n{self.unknown}")
        return "\n\n".join(parts)


def _part(part: str, macs: float, adds: float, costs: Costs) -> Part:
    multiplied, added = macs * costs.mac / 1000, adds * costs.add / 1000
    return Part(part, multiplied, added, multiplied + added)
