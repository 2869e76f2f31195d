"""Copies the graph of a traced model node by node; where a count stood, its planes stand."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from torch import fx

from ..tables import Table
from .model import Model
from .new_graph import Emitted, NewGraph, Planes
from .operations import AVERAGES, CASTS, JOINING, MAXIMA, QUERIES, WIRING, advice, argument
from .planes import Collect, Expand, Merge, Window, plane_weights
from .report import DeployError, Layer
from .trace import Seen
from .weights import (
    WEIGHTED,
    available_bits,
    check_plain,
    rounding_bound,
    rows_of,
    sum_bits,
    widened,
    without_bias,
)


class Writer:
    """One rule for each kind of call: what becomes of it when its input is planes."""

    def __init__(self, model: Model, form: str, counts: Iterable[str], exact: bool = True) -> None:
        self.model, self.new, self.form, self.counts = model, NewGraph(model), form, set(counts)
        self.exact = exact
        columns = [field.name for field in fields(Layer) if not (exact and field.name == "bound")]
        self.report: Table[Layer] = Table(columns=columns)
        self.inexact: dict[str, tuple[int | None, int]] = {}

    def write(self) -> None:
        """Fill ``new`` and ``report``.

        Raises:
            DeployError: a call whose result planes cannot give, or sums that are not exact.
        """
        for node in self.model.traced.graph.nodes:
            self.new.env[node] = self.visit(node)
        given = {row.layer for row in self.report if row.input == "counts"}
        if self.counts - given:
            raise DeployError(f"nothing of the name(s) {sorted(self.counts - given)} takes counts")
        if not self.model.levels:
            raise DeployError("the model calls no spiking neuron: there are no counts to expand")
        if self.exact:
            self.check_exact()

    def visit(self, node: fx.Node) -> fx.Node | Planes | Emitted:
        if node.op == "call_module" and node.target in self.model.levels:
            return self.neuron(node)
        sources = [n for n in node.all_input_nodes if isinstance(self.new.env[n], Planes)]
        if not sources:
            return self.without_planes(node)
        name = self.model.operation(node)
        if name in QUERIES:
            return self.new.copy(node, {n: self.planes(n).nodes[0] for n in sources})
        if self.model.label(node) in self.counts:
            self.row(node, "counts", self.planes(sources[0]))
            return self.new.copy(node)
        if node not in self.model.busy:
            # A readout: no layer or neuron behind it, so it may have the counts.
            return self.new.copy(node)
        if isinstance(self.model.module(node), WEIGHTED):
            return self.layer(node, sources)
        if name in WIRING or (name in CASTS and self.model.keeps_dtype(node, sources)):
            return self.wire(node, name, sources)
        if name in MAXIMA:
            return self.maximum(node, sources)
        if name in AVERAGES:
            return self.average(node, name, sources)
        if name == "add":
            return self.add(node, sources)
        if name == "mul" and self.both_binary(node):
            return self.each(node, sources)  # an AND gate
        raise self.refusal(node, sources, *advice(name))

    def without_planes(self, node: fx.Node) -> fx.Node | Planes:
        emitted = [(n, e) for n in node.all_input_nodes if isinstance(e := self.new.env[n], Emitted)]
        if emitted and node.target is operator.getitem and isinstance(node.args[1], int):
            (before, e), length = emitted[0], len(self.model.seen[emitted[0][0].name])
            new = self.new.copy(node)
            return self.expand(new, e.levels, e.path, before) if node.args[1] % length == 0 else new
        if emitted and node in self.model.busy:
            raise DeployError(
                f"{self.model.where(node)} takes the whole output of {emitted[0][1].path!r}: unpack it first, "
                "spikes, state = neuron(x)"
            )
        if isinstance(self.model.module(node), WEIGHTED):
            self.row(node, "real")
        return self.new.copy(node)

    def neuron(self, node: fx.Node) -> Planes | Emitted:
        path = str(node.target)
        for n in node.all_input_nodes:
            planes = self.new.env[n]
            if isinstance(planes, Planes):
                self.row(node, "binary", planes)
        new = self.new.copy(node)
        if isinstance(self.model.seen[node.name], Seen):
            return self.expand(new, self.model.levels[path], path, node)
        return Emitted(new, self.model.levels[path], path)

    def expand(self, new: fx.Node, levels: int, path: str, node: fx.Node) -> Planes:
        """The planes of the counts ``new``, which the neuron at ``path`` emitted."""
        if levels == 1:
            return Planes((new,), (1,), 1, True, path)
        seen = self.model.seen[node.name]
        dtype = (seen if isinstance(seen, Seen) else seen[0]).dtype
        weights = plane_weights(levels, self.form)
        name = self.new.make(f"{path}_expand", (dtype,), lambda: Expand(levels, self.form, dtype))
        planes = self.new.graph.call_module(name, (new,))
        nodes = tuple(
            self.new.graph.call_function(operator.getitem, (planes, i)) for i in range(len(weights))
        )
        return Planes(nodes, weights, levels, self.form != "bits", path)

    def layer(self, node: fx.Node, sources: list[fx.Node]) -> fx.Node:
        """A layer with weights: wider, or called on sub-steps whose outputs are summed."""
        path, module = str(node.target), self.model.module(node)
        (source,) = sources
        planes = self.planes(source)
        if len(planes.nodes) == 1:
            self.row(node, "binary", planes)
            return self.new.copy(node, {source: planes.nodes[0]})
        check_plain(path, module)
        spatial, count = module.weight.dim() - 2, len(planes.nodes)
        bits = self.accumulator(path, module, planes.levels)
        self.row(node, "binary", planes, bits, self.bound(path, module, planes.levels, count))
        if self.form == "channels":
            merge = self.new.make(f"{path}_merge", (), lambda: Merge(-1 - spatial))
            name = self.new.make(path, (count,), lambda: widened(module, count))
            merged = self.new.graph.call_module(merge, planes.nodes)
            return self.new.twin(node, self.new.copy(node, {source: merged}, name))
        if len(self.model.seen[source.name].shape) < spatial + 2:
            raise self.refusal(
                node, sources, "has no batch axis for the sub-steps", "unsqueeze one, or use form='channels'"
            )
        name = self.new.make(path, ("bare",), lambda: without_bias(module))
        y = self.new.copy(node, {source: self.new.merge_steps(planes)}, name)
        collect = self.new.make(
            f"{path}_collect", planes.weights, lambda: Collect(planes.weights, module.bias, spatial)
        )
        return self.new.twin(node, self.new.graph.call_module(collect, (y,)))

    def wire(self, node: fx.Node, name: str, sources: list[fx.Node]) -> Planes:
        if self.model.real_operand(node, sources):
            raise self.refusal(
                node,
                sources,
                "joins spikes with real values" if name in JOINING else "is given another tensor",
                "join only the outputs of neurons, each through a layer of its own otherwise",
            )
        if name == "dropout" and argument(node, 2, "training", argument(node, 2, "train", False)):
            raise self.refusal(
                node, sources, "drops spikes in evaluation too", "give it training=self.training"
            )
        if name == "pad":
            mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
            if mode == "constant" and value not in (None, 0):
                raise self.refusal(node, sources, f"pads with {value}", "pad spikes with 0")
        return self.each(node, sources)

    def maximum(self, node: fx.Node, sources: list[fx.Node]) -> Planes:
        planes = [self.planes(n) for n in sources]
        if not isinstance(self.model.seen[node.name], Seen):
            raise self.refusal(
                node, sources, "returns indices too", "the planes have none: return_indices=False"
            )
        if not all(p.ordered for p in planes):
            bits = self.form == "bits" and any(2 in p.weights for p in planes)
            raise self.refusal(
                node,
                sources,
                "takes a maximum of bits" if bits else "takes a maximum of sums of spikes",
                "use form='channels' or 'substeps', where a maximum of counts is that of each plane"
                if bits
                else "pool before the addition, or behind the next neuron",
            )
        if self.model.real_operand(node, sources):
            raise self.refusal(
                node, sources, "compares spikes with real values", "compare outputs of neurons only"
            )
        return self.each(node, sources)

    def average(self, node: fx.Node, name: str, sources: list[fx.Node]) -> fx.Node:
        """A linear layer of its own; what comes out is real-valued."""
        (source,) = sources
        planes, window = self.planes(source), self.window(node, name, source)
        if len(planes.nodes) == 1:
            self.row(node, "binary", planes)
            return self.new.twin(node, self.new.copy(node))
        if name != "sum" and (window is None or window & (window - 1)):
            size = "unequal windows" if window is None else f"windows of {window}"
            raise self.refusal(
                node,
                sources,
                f"averages {size}, which rounds",
                "average a power of two of elements without padding (2x2, 4x4), take a maximum, or use a depthwise "
                "convolution with rounded weights",
            )
        bits = (planes.levels * (window or 1)).bit_length() + 1
        if bits > available_bits(self.model.seen[source.name].dtype):
            raise self.refusal(node, sources, f"needs sums of {bits} bits", "use a wider dtype")
        self.row(node, "binary", planes, bits)
        averaged = self.each(node, sources)
        if name == "mean" or name.startswith("adaptive"):
            # Their windows follow the sizes of the input, which may be others later.
            sizes = self.model.seen[source.name].shape[-int(name[-2]) :] if name != "mean" else ()
            guard = self.new.make(f"{node.name}_window", (), lambda: Window(window or 1, sizes))
            first = self.new.graph.call_module(guard, (planes.nodes[0], averaged.nodes[0]))
            averaged = replace(averaged, nodes=(first, *averaged.nodes[1:]))
        return self.new.twin(node, self.new.count(averaged))

    def window(self, node: fx.Node, name: str, source: fx.Node) -> int | None:
        """Number of elements that each average is over; None if they differ."""
        before, after = self.model.seen[source.name].shape, self.model.seen[node.name].shape
        if name in ("mean", "sum"):
            return math.prod(before) // max(1, math.prod(after))
        n = int(name[-2])
        if name.startswith("adaptive"):
            sizes = list(zip(before[-n:], after[-n:], strict=True))
            return None if any(a % b for a, b in sizes) else math.prod(a // b for a, b in sizes)
        module = self.model.module(node)
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        defaults = (None, None, 0, False, True, None)
        kernel, _, padding, ceil, include, divisor = (
            argument(node, i + 1, key, default) if module is None else getattr(module, key, default)
            for i, (key, default) in enumerate(zip(names, defaults, strict=True))
        )
        if divisor is not None:
            return int(divisor)
        padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
        if ceil or (padded and not include):
            return None
        kernel = tuple(kernel) if isinstance(kernel, tuple | list) else (kernel,)
        return math.prod(kernel if len(kernel) == n else kernel * n)

    def add(self, node: fx.Node, sources: list[fx.Node]) -> fx.Node | Planes:
        """Counts plus counts: the planes of both. Counts plus anything else: synapses of weight 1."""
        both = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        if argument(node, 2, "alpha", 1) != 1:
            raise self.refusal(node, sources, "adds with alpha", "move the factor into a layer's weights")
        if len(both) < 2 or set(both) != set(sources):
            self.row(node, "binary", self.planes(sources[0]))
            return self.new.copy(node)
        shapes = {self.model.seen[n.name].shape for n in both}
        if len(shapes) > 1:
            raise self.refusal(node, sources, f"adds counts of shapes {sorted(shapes)}", "expand one first")
        left, right = (self.planes(n) for n in both)
        return Planes(
            left.nodes + right.nodes,
            left.weights + right.weights,
            left.levels + right.levels,
            False,
            f"{left.source} + {right.source}",
        )

    def each(self, node: fx.Node, sources: list[fx.Node]) -> Planes:
        """The operation on each plane by itself. Operands with fewer planes have silent ones in their place."""
        planes = [self.planes(n) for n in sources]
        longest = max(planes, key=lambda p: len(p.nodes))
        if any(p.weights != longest.weights[: len(p.nodes)] for p in planes):
            raise self.refusal(
                node, sources, "joins sums of bits of different lengths", "use form='channels' or 'substeps'"
            )
        padded = {n: self.new.pad(p, len(longest.nodes)) for n, p in zip(sources, planes, strict=True)}
        nodes = tuple(
            self.new.copy(node, {n: padded[n][i] for n in sources}) for i in range(len(longest.nodes))
        )
        name = " and ".join(dict.fromkeys(p.source for p in planes))
        levels, ordered = max(p.levels for p in planes), all(p.ordered for p in planes)
        return Planes(nodes, longest.weights, levels, ordered, name)

    def planes(self, node: fx.Node) -> Planes:
        planes = self.new.env[node]
        assert isinstance(planes, Planes)
        return planes

    def both_binary(self, node: fx.Node) -> bool:
        operands = [self.new.env[x] if isinstance(x, fx.Node) else None for x in node.args]
        return all(isinstance(x, Planes) and len(x.nodes) == 1 for x in operands)

    def accumulator(self, path: str, module: Any, levels: int) -> int | None:
        bits = sum_bits(module, levels)
        if bits is None or bits > available_bits(module.weight.dtype):
            self.inexact[path] = (bits, levels)
        return bits

    def bound(self, path: str, module: Any, levels: int, planes: int) -> float | None:
        if self.exact or path not in self.inexact:
            return None
        bound = rounding_bound(module, levels, planes, self.form == "channels")
        if not math.isfinite(bound):
            raise DeployError(
                f"{path}: its weights are not finite, or its sums have too many terms or are too large for "
                f"{module.weight.dtype} to say how far they are off: convert the model to a wider dtype"
            )
        return bound

    def row(
        self,
        node: fx.Node,
        kind: str,
        planes: Planes | None = None,
        sum_bits: int | None = None,
        bound: float | None = None,
    ) -> None:
        module, path = self.model.module(node), self.model.label(node)
        what = self.model.operation(node) if module is None else type(module).__name__
        row = Layer(path, what, kind)
        if planes is not None and kind == "counts":
            row = Layer(path, what, kind, levels=planes.levels)
        elif planes is not None:
            count = len(planes.nodes)
            form = self.form if count > 1 else None
            row = Layer(path, what, kind, form, planes.levels, count, sum_bits, bound)
        if row not in self.report:
            self.report.append(row)

    def refusal(self, node: fx.Node, sources: list[fx.Node], what: str, remedy: str) -> DeployError:
        planes = [self.planes(n) for n in sources]
        given = ", ".join(f"{p.source} (0..{p.levels})" for p in planes)
        return DeployError(
            f"{self.model.where(node)} {what}, given the spikes of {given}: {remedy}. "
            f"Or leave it off the binary part, on counts, with counts=[{self.model.label(node)!r}]"
        )

    def bits_that_fit(self) -> int:
        """The bits of weights at which every sum is exact; below 2 where the dtype is too narrow for any."""
        bits = 8
        for path, (_needed, levels) in self.inexact.items():
            module: Any = self.model.traced.get_submodule(path)
            terms = rows_of(module).shape[1] * levels
            bits = min(bits, math.floor(available_bits(module.weight.dtype) - 1 - math.log2(terms)) + 1)
        return bits

    def check_exact(self) -> None:
        if not self.inexact:
            return
        lines, bits = [], self.bits_that_fit()
        for path, (needed, _levels) in self.inexact.items():
            dtype = self.model.traced.get_submodule(path).weight.dtype
            need = "its weights are not finite" if needed is None else f"its sums need {needed} bits"
            lines.append(f"  {path}: {need}, {dtype} has {available_bits(dtype)}")  # type: ignore[arg-type]
        remedy = (
            f"model, moved = deploy.round_weights(model, bits={bits}, only={list(self.inexact)}), or exact=False"
            if bits >= 2
            else "convert the model to a wider dtype"
        )
        raise DeployError(
            "sums in another order would round differently, for the weights do not lie on a coarse enough power of "
            "two:\n" + "\n".join(lines) + f"\nremedy: {remedy}"
        )
