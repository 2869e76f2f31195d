"""What a spiking network costs: synaptic operations, neuron updates, memory traffic, energy.

::

    with energy.counting(net, samples=16) as counts:
        net(x_seq)                      # a batch of 16 samples
    print(counts)                       # every layer: what it was given, what it cost
    print(counts.energy())              # the papers' convention, nJ a sample
    print(counts.compare(steps=4))      # the same net on integer hardware, beside quantized ANNs

A count k costs k accumulates: an input of integers is spikes, however large; any other input is real and costs
multiply-accumulates (MACs). The counter sees the tensor operations of any PyTorch module, whatever its framework.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from . import neurons
from .deploy import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "RULES",
    "SRAM_PJ_PER_BIT",
    "UPDATES",
    "Costs",
    "Counts",
    "EnergyError",
    "Machine",
    "Neurons",
    "Synapses",
    "Update",
    "Work",
    "counting",
    "integer",
    "measure",
    "neuron_update",
    "plot",
    "spikes_of",
]

aten = torch.ops.aten


class EnergyError(RuntimeError):
    """Something that cannot be counted, with what to do about it."""


# Costs in pJ: 45 nm, M. Horowitz, "Computing's energy problem", ISSCC 2014 ------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Energy of one multiplication and one addition, pJ."""

    multiply: float
    add: float

    @property
    def mac(self) -> float:
        """One multiply-accumulate."""
        return self.multiply + self.add


FLOAT32 = Costs(3.7, 0.9)
FLOAT16 = Costs(1.1, 0.4)
SRAM_PJ_PER_BIT = 20 / 64  # 64 bits from a cache of 32 kB cost 20 pJ


def integer(a_bits: int, b_bits: int, sum_bits: int = 32) -> Costs:
    """Integers of ``a_bits`` times ``b_bits``, summed in ``sum_bits``: linear in the bits of both operands.

    Anchored at the published 32-bit numbers (3.1 and 0.1 pJ); the published 8-bit ones (0.2 and 0.03) are met to 17 %.
    """
    return Costs(3.1 * a_bits * b_bits / 32**2, 0.1 * sum_bits / 32)


# Synapses: one rule for each tensor operation that multiplies ---------------------------------------------------------


class Work(NamedTuple):
    """What one operation costs. All of it adds up over operations."""

    dense: int = 0
    """Multiply-accumulates if nothing is skipped."""
    macs: int = 0
    """Those of them where no operand is spikes."""
    accumulates: int = 0
    """Where one is: a count k of fan-out f is k*f of them."""
    events: int = 0
    """The same with every count above 0 taken as one: how often a weight is needed."""


class Spikes(NamedTuple):
    """An operand that holds integers only: magnitudes, float64."""

    counts: Tensor

    @property
    def fired(self) -> Tensor:
        return (self.counts != 0).double()


Rule = Callable[[tuple[Any, ...], dict[str, Any], Any, Callable[[Tensor], Spikes | None]], Work]


def spikes_of(x: Tensor) -> Spikes | None:
    """``x`` as magnitudes of spikes if it holds integers only, else None: real values.

    Raises:
        EnergyError: a meta tensor, which holds nothing.
    """
    if x.is_meta:
        raise EnergyError(
            f"a tensor of shape {tuple(x.shape)} on device 'meta' holds no values, so its spikes cannot be counted: "
            "move the whole net and its input to a real device"
        )
    x = x.detach()
    if x.is_floating_point() and not bool((torch.isfinite(x) & (x == x.round())).all()):
        return None
    return None if x.is_complex() else Spikes(x.double().abs())


def _product(a: Tensor, b: Tensor, read: Callable[[Tensor], Spikes | None]) -> Work:
    """``a @ b``: [*, m, k] times [*, k, n]."""
    rows, columns = a.shape[-2], b.shape[-1]
    dense = a.numel() * columns
    left, right = read(a), read(b)
    if left is None and right is None:
        return Work(dense, dense)

    def pairs(of: Callable[[Spikes], Tensor]) -> int:
        # Every element of a meets every one of b that has its k: the sum over k of two sums.
        x = None if left is None else of(left).sum(-2)
        y = None if right is None else of(right).sum(-1)
        if x is None or y is None:
            return round(float(x.sum()) * columns if x is not None else float(y.sum()) * rows)  # type: ignore[union-attr]
        return round(float((x * y).sum()))

    return Work(dense, 0, pairs(lambda s: s.counts), pairs(lambda s: s.fired))


def _operands(first: int, args: tuple[Any, ...], kwargs: Any, out: Any, read: Any) -> Work:
    return _product(args[first], args[first + 1], read)


def _vector(first: int, args: tuple[Any, ...], kwargs: Any, out: Any, read: Any) -> Work:
    a, b = args[first], args[first + 1]
    return _product(a if a.dim() == 2 else a.unsqueeze(0), b.unsqueeze(-1), read)


def _attention(args: tuple[Any, ...], kwargs: Any, out: Any, read: Any) -> Work:
    q, k, v = args[:3]
    shares = q.new_empty(*q.shape[:-1], k.shape[-2])  # what the softmax makes is real
    first = _product(q, k.transpose(-2, -1), read)
    second = _product(shares, v, lambda x: None if x is shares else read(x))
    return Work(*map(sum, zip(first, second, strict=True)))


def _convolution(args: tuple[Any, ...], kwargs: Any, out: Tensor, read: Any) -> Work:
    x, weight, _bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    per_element = math.prod(weight.shape[1:])
    dense = (x if transposed else out).numel() * per_element
    spikes = read(x)
    if spikes is None:
        return Work(dense, dense)
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups  # of each group
    kernel = torch.ones(groups, 1, *weight.shape[2:], dtype=torch.float64, device=x.device)
    shape = (stride, padding, dilation, transposed, output_padding, groups)

    def reached(counts: Tensor) -> int:
        # All channels of a group have the same fan-out: what lies beyond the border costs nothing.
        counts = counts.unflatten(1, (groups, -1)).sum(2)
        return round(float(aten.convolution.default(counts, kernel, None, *shape).sum())) * outputs

    return Work(dense, 0, reached(spikes.counts), reached(spikes.fired))


RULES: dict[Any, Rule] = {
    aten.mm.default: partial(_operands, 0),
    aten.addmm.default: partial(_operands, 1),
    aten.bmm.default: partial(_operands, 0),
    aten.baddbmm.default: partial(_operands, 1),
    aten.addbmm.default: partial(_operands, 1),
    aten.mv.default: partial(_vector, 0),
    aten.addmv.default: partial(_vector, 1),
    aten.dot.default: partial(_vector, 0),
    aten.convolution.default: _convolution,
}
for _name in (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
):
    if hasattr(aten, _name):
        RULES[getattr(aten, _name).default] = _attention

# What multiplies has one of these words in its name; without a rule it is missed.
_MULTIPLIES = re.compile(
    r"(^|_)([a-z0-9]*mm|v?dot|(add)?mv|conv(?!ert)[a-z0-9]*|(tri)?linear|matmul|einsum|attention|rnn|lstm|gru)(_|$)"
)
_KNOWN = ("aten", "prim", "prims", "_c10d_functional", "c10d", "msf_pmsn_plugins")


def measure(
    net: nn.Module | None = None,
) -> Callable[..., tuple[Work, list[tuple[Tensor, Spikes | None]]] | None]:
    """A function ``(op, args, kwargs, out, weight=None) -> (Work, operands)`` for the operations of ``net``.

    Operands are the tensors that are no weights, each with its spikes, or None if it is real. ``weight`` and the
    parameters of ``net`` are never taken for spikes, even if they hold integers. An operation without a rule gives
    None.
    """
    parameters = list(net.parameters()) if net is not None else []
    lazy = any(is_lazy(p) for p in parameters)
    weights = {_storage(p) for p in parameters}

    def measure_one(op: Any, args: tuple[Any, ...], kwargs: Any, out: Any, weight: Any = None) -> Any:
        rule = RULES.get(op)
        if rule is None:
            return None
        known = {_storage(p) for p in parameters} if lazy else weights
        operands: list[tuple[Tensor, Spikes | None]] = []

        def read(x: Tensor) -> Spikes | None:
            place = _storage(x)
            if x is weight or (place is not None and place in known):
                return None
            operands.append((x, spikes_of(x)))
            return operands[-1][1]

        return rule(args, kwargs or {}, out, read), operands

    return measure_one


def _storage(x: Tensor) -> tuple[Any, ...] | None:
    """What tells whether two tensors share memory; None for a tensor without memory."""
    try:
        return None if x.is_meta or is_lazy(x) else (x.device, x.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # sparse
        return None


# Neurons: what one update of one neuron costs ------------------------------------------------------------------------


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
_BASES = ("BaseNode", "SpikingNeuron", "Neuron", "NonSpikingBaseNode", "SimpleBaseNode")


def _family(module: nn.Module, known: Mapping[str, Any]) -> str | None:
    """The first class of ``module`` that ``known`` names, "" for another neuron, None for what is no neuron."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return next((n for n in names if n in known), "" if any(n in _BASES for n in names) else None)


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
    held = getattr(module, "neuron", None)
    module = held if isinstance(held, neurons.Neuron) else module
    known = {**UPDATES, **(updates or {})}
    family = _family(module, known)
    if family == "":
        name = type(module).__name__
        raise EnergyError(
            f"no formula for the update of {name}: give one, updates={{{name!r}: energy.Update(macs=..)}}"
        )
    if family is None:
        return None
    formula = known[family]
    return formula if isinstance(formula, Update) else formula(module, steps)


# The counter ----------------------------------------------------------------------------------------------------------


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
    """Those above 0."""
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


@dataclass(frozen=True)
class Unknown:
    """What could not be counted."""

    name: str
    layer: str
    calls: int
    remedy: str


class _Shown(Table[Any]):
    """A table that prints some of its columns, with whole numbers written out."""

    def __init__(self, rows: Iterable[Any], columns: str) -> None:
        super().__init__(rows)
        self.columns = columns.split()

    def __str__(self) -> str:
        row = make_dataclass("Row", self.columns)
        return str(Table(row(*(_figure(getattr(r, name)) for name in self.columns)) for r in self))


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    whole = value == round(value) or abs(value) >= 1000
    return f"{value:,.0f}" if whole else f"{value:.3g}"


class Counts(TorchDispatchMode):
    """What :func:`counting` gives. All figures are a sample."""

    def __init__(
        self,
        net: nn.Module,
        samples: int,
        updates: Mapping[str, Any] | None,
        real: Sequence[str],
        strict: bool,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"energy counts an nn.Module, got {type(net).__name__}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples, how many the block runs, must be an integer >= 1, got {samples!r}")
        self._paths = {module: path for path, module in reversed(list(net.named_modules()))}
        wrong = set(real) - set(self._paths.values())
        if isinstance(real, str) or wrong:
            raise ValueError(f"real names layers of the net; not one of them: {sorted(wrong) or repr(real)}")
        self._net, self._samples, self._updates, self._strict = net, samples, updates, strict
        self._real, self._measure = set(real), measure(net)
        self._stack: list[nn.Module] = []
        self._synapses: dict[str, dict[str, float]] = {}
        self._neurons: dict[tuple[str, str], dict[str, float]] = {}
        self._unknown: dict[tuple[str, str, str], int] = {}

    @property
    def synapses(self) -> Table[Synapses]:
        """The layers with weights and the products of activations, in the order of their first call."""
        rows = []
        for layer, sums in self._synapses.items():
            kinds = sums["real"] > 0, sums["counted"] > 0
            per = {k: v / self._samples for k, v in sums.items() if k not in ("largest", "real", "counted")}
            rows.append(
                Synapses(
                    layer=layer,
                    input="both" if all(kinds) else "real" if kinds[0] else "spikes",
                    largest=sums["largest"],
                    rate=per["spikes" if kinds[1] else "fired"] / max(per["elements"], 1e-30),
                    **per,
                )
            )
        return _Shown(rows, "layer input largest rate dense macs accumulates")

    @property
    def neurons(self) -> Table[Neurons]:
        """The layers of neurons, in the order of their first call."""
        rows = (
            Neurons(layer, kind, **{k: v / self._samples for k, v in sums.items()})
            for (layer, kind), sums in self._neurons.items()
        )
        return _Shown(rows, "layer kind updates macs adds spikes")

    @property
    def unknown(self) -> Table[Unknown]:
        """What has no rule or formula: it is missing in all figures."""
        return Table(
            Unknown(name, layer, calls, remedy) for (name, layer, remedy), calls in self._unknown.items()
        )

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
        rows = [
            self._part(row.layer, row.macs * costs.mac, row.accumulates * costs.add) for row in self.synapses
        ]
        rows += [
            self._part(f"{row.layer} ({row.kind})", row.macs * costs.mac, row.adds * costs.add)
            for row in self.neurons
        ]
        total = Part("total", *(sum(getattr(r, k) for r in rows) for k in ("macs", "accumulates", "total")))
        return _Shown([*rows, total], "part macs accumulates total")

    @staticmethod
    def _part(part: str, macs: float, adds: float) -> Part:
        return Part(part, macs / 1000, adds / 1000, (macs + adds) / 1000)

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
        rows = self.synapses
        dense, elements = (sum(getattr(r, k) for r in rows) / steps for k in ("dense", "elements"))
        ann = {
            f"ANN, {bits}-bit {'float' if bits == 32 else 'integers'}": (
                dense * (FLOAT32 if bits == 32 else integer(bits, bits, word_bits)).mac,
                dense * bits * pj_per_bit,
                2 * elements * bits * pj_per_bit,
                0.0,
                0.0,
            )
            for bits in (32, 8, 4)
        }
        words, bits = integer(word_bits, word_bits, word_bits), weight_bits
        update = sum(r.macs * words.mac + r.adds * words.add for r in self.neurons)
        state = sum(r.reads + r.writes for r in self.neurons) * word_bits * pj_per_bit
        real = integer(8, bits, word_bits).mac
        spiking = {
            f"spikes one by one, {bits}-bit weights": (
                sum(r.macs * real + r.accumulates * words.add for r in rows),
                sum(r.macs + r.accumulates for r in rows) * bits * pj_per_bit,
                sum(2 * (8 * _real_elements(r) + address_bits * r.spikes) for r in rows) * pj_per_bit,
                update,
                state,
            ),
            f"spikes as numbers, {bits}-bit weights": (
                sum(r.macs * real + r.events * integer(_bits(r), bits, word_bits).mac for r in rows),
                sum(r.macs + r.events for r in rows) * bits * pj_per_bit,
                sum(2 * (8 * _real_elements(r) + (address_bits + _bits(r)) * r.fired) for r in rows)
                * pj_per_bit,
                update,
                state,
            ),
        }
        reference = sum(ann["ANN, 8-bit integers"]) or math.nan
        machines = []
        for name, parts in {**ann, **spiking}.items():
            synapses, weights, activations, update, state = (part / 1000 for part in parts)
            total, relative = sum(parts) / 1000, sum(parts) / reference
            machines.append(Machine(name, synapses, weights, activations, update, state, total, relative))
        return _Shown(machines, "machine synapses weights activations neurons state total relative")

    def __str__(self) -> str:
        parts = [str(self.synapses), str(self.neurons)]
        if self._unknown:
            parts.append(f"not counted:\n{self.unknown}")
        return "\n\n".join(parts)

    # Inside the block.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RULES and func is not torch.ops.prim.device.default:
            with self:  # inference mode leaves composites whole, such as linear
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        # In a backward pass a checkpointed forward may run again.
        if self._stack and torch._C._current_graph_task_id() == -1:
            self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        module = self._stack[-1]
        if self._is_neuron(module):
            return  # its formula counts
        path = self._paths[module]
        space, operation = func._schema.name.split("::")
        # A weight may be computed (quantized, say) and hold integers without being a parameter.
        weight = args[-1] if isinstance(module, nn.Linear) and func in _LINEAR else None
        measured = self._measure(func, args, kwargs, out, weight)
        if measured is None:
            if _MULTIPLIES.search(operation) or space not in _KNOWN:
                self._miss(str(func), path, f"add a rule, energy.RULES[torch.ops.{func}] = ..")
            return
        result, operands = measured
        if path in self._real:
            result = Work(result.dense, result.dense)
        layer = path or type(module).__name__
        if not isinstance(module, _WEIGHTED):
            layer = f"{layer}: {operation}"
        sums = self._synapses.setdefault(layer, dict.fromkeys(_SUMS, 0.0))
        for name, value in zip(Work._fields, result, strict=True):
            sums[name] += value
        for x, spikes in operands:
            sums["elements"] += x.numel()
            sums["fired"] += float((x != 0).sum())
            if spikes is None or path in self._real:
                sums["real"] += 1
            else:
                sums["counted"] += 1
                sums["spikes"] += float(spikes.counts.sum())
                sums["largest"] = max(sums["largest"], float(spikes.counts.max()) if x.numel() else 0.0)

    def _is_neuron(self, module: nn.Module) -> bool:
        return _family(module, {**UPDATES, **(self._updates or {})}) is not None

    def _miss(self, name: str, path: str, remedy: str) -> None:
        if self._strict:
            raise EnergyError(f"{path or 'the net'}: {name} has no rule, it cannot be counted: {remedy}")
        key = (name, path, remedy)
        self._unknown[key] = self._unknown.get(key, 0) + 1

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)

    def _leave_module(self, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()
        if not self._is_neuron(module) or torch._C._current_graph_task_id() != -1:
            return
        tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        if not tensors:
            return
        s, path = tensors[0], self._paths[module]
        try:
            update = neuron_update(module, len(s) if s.dim() else 1, self._updates)
        except EnergyError as error:
            if self._strict:
                raise EnergyError(f"{path or 'the net'}: {error}") from None
            self._miss(type(module).__name__, path, str(error).split(": ", 1)[1])
            return
        assert update is not None
        sums = self._neurons.setdefault(
            (path or type(module).__name__, type(module).__name__),
            dict.fromkeys(("updates", *Update._fields, "spikes"), 0.0),
        )
        sums["updates"] += s.numel()
        sums["spikes"] += float(s.detach().double().sum())
        for name, value in zip(Update._fields, update, strict=True):
            sums[name] += value * s.numel()


_LINEAR = (aten.mm.default, aten.addmm.default)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_SUMS = (*Work._fields, "elements", "fired", "spikes", "largest", "real", "counted")


def _real_elements(row: Synapses) -> float:
    return row.elements if row.input != "spikes" else 0.0


def _bits(row: Synapses) -> int:
    return max(1, math.ceil(math.log2(row.largest + 1)))


@contextmanager
def counting(
    net: nn.Module,
    samples: int = 1,
    *,
    updates: Mapping[str, Any] | None = None,
    real: Sequence[str] = (),
    strict: bool = False,
) -> Iterator[Counts]:
    """Count what ``net`` does inside the block: synaptic operations and neuron updates of its forward passes.

    Products inside a neuron (a PSN's matrix) are covered by the formula of its update. Biases, norms, pooling and the
    additions of shortcuts are not counted, as in the papers.

    Args:
        net: any module; layers and neurons are found by the operations and the class names, not by framework.
        samples: how many samples run in the block; all figures are divided by it.
        updates: formulas of further neurons by class name, as in :data:`UPDATES`, or an :class:`Update` each.
        real: paths of layers whose input is real, though it may hold integers (pixels from 0 to 255).
        strict: raise at what cannot be counted. Otherwise ``counts.unknown`` lists it, with a warning at the end.

    Raises:
        EnergyError: a meta tensor; with ``strict``, an unknown operation or neuron.
    """
    counts = Counts(net, samples, updates, real, strict)
    handles = []
    for module in net.modules():
        handles.append(module.register_forward_pre_hook(counts._enter_module))
        handles.append(module.register_forward_hook(counts._leave_module, always_call=True))
    try:
        with counts:
            yield counts
    finally:
        for handle in handles:
            handle.remove()
        counts._stack.clear()
    if counts._unknown:
        warnings.warn(f"not counted, so missing in all figures:\n{counts.unknown}", stacklevel=3)


def plot(curves: Mapping[str, Sequence[Sequence[Any]]], ax: Axes | None = None) -> Axes:
    """Accuracy against energy for sweeps.

    Args:
        curves: name -> points ``(energy in nJ, accuracy)``, with a label as third entry where one is wanted.
        ax: matplotlib axes; None makes new ones.

    Returns:
        The axes, energy on a logarithmic axis.

    Example::

        energy.plot({"MSF": [(1.2, 0.81, "D = 1"), (1.9, 0.88, "D = 4")], "LIF": [(1.1, 0.80)]})
    """
    from .plot import _color, _dress, _subplots

    if not curves or any(len(point) not in (2, 3) for points in curves.values() for point in points):
        raise ValueError("curves maps a name to points (energy in nJ, accuracy) or (energy, accuracy, label)")
    (ax,) = _subplots(ax, 1, 1, (6.0, 4.0))
    for name, points in curves.items():
        ordered = sorted(points, key=lambda point: point[0])
        energies, accuracies = ([point[i] for point in ordered] for i in (0, 1))
        ax.plot(energies, accuracies, "o-", color=_color(ax, None), label=name)
        for x, y, *label in ordered:
            if label:
                ax.annotate(label[0], (x, y), textcoords="offset points", xytext=(6, -10), fontsize="small")
    ax.set_xscale("log")
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
    ax.margins(x=0.15, y=0.1)
    _dress(ax, "energy per sample (nJ)", "accuracy")
    ax.legend(frameon=False)
    return ax
