"""Run a network of MSF neurons on binary spikes, with the same results, or say why that cannot be.

MSF emits counts 0..D; neuromorphic hardware sends 0 or 1. Here every count is written as binary *planes*: unary,
``s = sum_d [s > d]`` (D planes), or its bits, ``s = sum_k 2^k b_k`` (about log2 D planes)::

    net = deploy.to_binary(model, example_input, form="channels")   # D channels for one
    net = deploy.to_binary(model, example_input, form="substeps")   # D sub-steps for one
    net = deploy.to_binary(model, example_input, form="bits")       # as many sub-steps as D has bits
    print(net.report)                                               # what every layer is given

The planes of a neuron run side by side through everything that only moves spikes, until a layer with weights sums
them. That sum has another order than the model's, so every sum must be exact in floating point: the weights are
multiples of a power of two, small enough together. :func:`round_weights` makes them so.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from . import neurons

__all__ = [
    "FORMS",
    "BinaryNetwork",
    "DeployError",
    "Layer",
    "Rounded",
    "Table",
    "collect",
    "expand",
    "fold_batchnorm",
    "plane_weights",
    "round_weights",
    "to_binary",
]

FORMS = ("channels", "substeps", "bits")

Binary = type | tuple[type, ...]


class DeployError(ValueError):
    """A network that cannot run on binary spikes with the same results."""


Row = TypeVar("Row")


class Table(list[Row]):
    """Dataclasses of one kind; prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "(empty)"
        names = [field.name for field in fields(self[0])]  # type: ignore[arg-type]
        rows = [[name.replace("_", " ") for name in names]]
        rows += [[_cell(getattr(row, name)) for name in names] for row in self]
        widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
        rows.insert(1, ["-" * width for width in widths])
        lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


@dataclass(frozen=True)
class Rounded:
    """How far :func:`round_weights` moved the weights and the bias of one layer."""

    layer: str
    bits: int
    largest_move: float
    """In units of the weights."""
    relative: float
    """Root mean square of the moves over that of the weights."""


# Counts and planes ----------------------------------------------------------------------------------------------------


def plane_weights(D: int, form: str) -> tuple[int, ...]:
    """What a spike in each plane of a count 0..D is worth: D ones, or the powers of two up to D."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    if isinstance(D, bool) or not isinstance(D, int) or D < 1:
        raise ValueError(f"D, the largest count, must be an integer >= 1, got {D!r}")
    return tuple(2**k for k in range(D.bit_length())) if form == "bits" else (1,) * D


def _planes(s: Tensor, D: int, form: str) -> tuple[Tensor, ...]:
    """Counts -> binary planes of the same shape and dtype, least significant (lowest threshold) first."""
    if form == "bits":
        whole = s.to(torch.int64)
        return tuple(((whole >> k) & 1).to(s.dtype) for k in range(D.bit_length()))
    return tuple((s > d).to(s.dtype) for d in range(D))


def _merge(planes: Sequence[Tensor], axis: int) -> Tensor:
    """Planes [.., C, ..] -> one tensor [.., C*P, ..], those of one element side by side."""
    axis %= planes[0].dim()
    return torch.stack(tuple(planes), axis + 1).flatten(axis, axis + 1)


def _collect(y: Tensor, weights: Sequence[int], axis: int) -> Tensor:
    """[.., C*P, ..] -> [.., C, ..]: the weighted sum of each P neighbours."""
    axis %= y.dim()
    y = y.unflatten(axis, (y.shape[axis] // len(weights), len(weights)))
    if any(weight != 1 for weight in weights):
        y = y * y.new_tensor(weights).reshape(-1, *(1,) * (y.dim() - axis - 2))
    return y.sum(axis + 1)


def expand(s: Tensor, D: int, form: str = "channels", axis: int = 1) -> Tensor:
    """Counts 0..D as a binary tensor.

    Args:
        s: counts, floating point, such as [N, C, *] or [T, N, C, *].
        D: the largest count.
        form: ``"channels"``: ``axis`` becomes D times as long, the D planes [s > d] of a channel side by side.
            ``"substeps"``: axis 0 does, so that the D sub-steps of a time step (or of a sample) follow one another.
            ``"bits"``: axis 0 holds the bits instead, the lowest first.
        axis: the channels, for ``"channels"``.

    Raises:
        ValueError: ``s`` holds something else than integers 0..D, or has no such axis; unknown form.
    """
    plane_weights(D, form)
    axis = axis if form == "channels" else 0
    if not -s.dim() <= axis < s.dim():
        raise ValueError(f"counts of shape {tuple(s.shape)} have no axis {axis}")
    if not bool(((s >= 0) & (s <= D) & (s == s.round())).all()):
        raise ValueError(f"expected integer counts from 0 to D={D}")
    return _merge(_planes(s, D, form), axis)


def collect(y: Tensor, D: int, form: str = "channels", axis: int = 1) -> Tensor:
    """Undo :func:`expand`, also behind a linear map of each plane: the weighted sum over the planes.

    Raises:
        ValueError: the axis is no multiple of the number of planes; unknown form.
    """
    weights = plane_weights(D, form)
    axis = axis if form == "channels" else 0
    if not -y.dim() <= axis < y.dim() or y.shape[axis] % len(weights):
        raise ValueError(
            f"axis {axis} of a tensor of shape {tuple(y.shape)} does not hold {len(weights)} planes per element"
        )
    return _collect(y, weights, axis)


class Expand(nn.Module):
    """Counts [*] -> a tuple of binary planes [*]."""

    def __init__(self, D: int, form: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.D, self.form, self.dtype = D, form, dtype

    def forward(self, s: Tensor) -> tuple[Tensor, ...]:
        if self.training:
            raise RuntimeError(
                "a binary network only infers: call .eval(), and train the model it was made of"
            )
        if s.dtype != self.dtype:
            raise TypeError(
                f"the sums of this network were found exact in {self.dtype}, but its neurons now emit {s.dtype}: "
                "convert the model first (and leave autocast), then call to_binary again"
            )
        return _planes(s, self.D, self.form)

    def extra_repr(self) -> str:
        return f"D={self.D}, form={self.form!r}"


class Merge(nn.Module):
    """Planes [.., C, ..] -> [.., C*P, ..] along ``axis``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *planes: Tensor) -> Tensor:
        return _merge(planes, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Collect(nn.Module):
    """Sub-steps [L*P, *] -> their weighted sum [L, *] plus the bias, which lies on axis ``-1 - spatial``."""

    bias: Tensor | None

    def __init__(self, weights: Sequence[int], bias: Tensor | None = None, spatial: int = 0) -> None:
        super().__init__()
        self.weights, self.spatial = tuple(weights), spatial
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    def forward(self, y: Tensor) -> Tensor:
        y = _collect(y, self.weights, 0)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * self.spatial)

    def extra_repr(self) -> str:
        return f"weights={self.weights}, bias={self.bias is not None}"


class Window(nn.Module):
    """Passes on what was averaged, if from as many elements as on the example."""

    def __init__(self, elements: int, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.elements, self.sizes = elements, tuple(sizes)

    def forward(self, x: Tensor, averaged: Tensor) -> Tensor:
        trailing = tuple(x.shape[x.dim() - len(self.sizes) :])
        if trailing != self.sizes or x.numel() != self.elements * averaged.numel():
            raise ValueError(
                f"this network was checked for averages over {self.elements} elements; for an input of shape "
                f"{tuple(x.shape)} there, call to_binary again with an example of that size"
            )
        return averaged

    def extra_repr(self) -> str:
        return f"elements={self.elements}"


# Layers with weights --------------------------------------------------------------------------------------------------

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def _rows(module: Any) -> Tensor:
    """The weights by output channel, [outputs, weights of an output], float64."""
    weight = module.weight.detach().double()
    if isinstance(module, TRANSPOSED):
        groups = module.groups
        weight = weight.unflatten(0, (groups, len(weight) // groups)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def _wide(module: Any, planes: int) -> nn.Module:
    """A copy that takes ``planes`` channels for each of its input channels, each with that channel's weights."""
    wide = copy.deepcopy(module)
    axis = 0 if isinstance(module, TRANSPOSED) else 1
    # Neighbours, so that the planes of a channel stay in its group.
    wide.weight = nn.Parameter(module.weight.detach().repeat_interleave(planes, axis))
    if isinstance(module, nn.Linear):
        wide.in_features *= planes
    else:
        wide.in_channels *= planes
    return wide


def _without_bias(module: Any) -> nn.Module:
    bare = copy.deepcopy(module)
    bare.bias = None
    return bare


def _lowest_bits(x: Tensor) -> Tensor:
    """Exponent of the lowest set bit of each element (float64); a large number for 0."""
    mantissa, exponent = torch.frexp(x)
    whole = (mantissa * 2.0**53).to(torch.int64)
    lowest = torch.frexp((whole & -whole).to(x.dtype)).exponent - 1
    return torch.where(x == 0, 10_000, exponent - 53 + lowest)


def _sum_bits(module: Any, levels: int) -> int | None:
    """Bits of the largest sum of each output, sign included, in units of the output's lattice; None if not finite.

    The lattice of an output is the coarsest power of two of which its weights and its bias are multiples. Every sum
    of products with counts up to ``levels``, in any order and with any part left out, is a multiple of it and no
    larger than ``levels * sum |w| + |b|``.
    """
    rows = _rows(module).cpu()
    total, lowest = rows.abs().sum(1) * levels, _lowest_bits(rows).amin(1)
    if module.bias is not None:
        bias = module.bias.detach().double().cpu()
        total, lowest = total + bias.abs(), torch.minimum(lowest, _lowest_bits(bias))
    if not bool(total.isfinite().all()):
        return None
    pairs = zip(total.tolist(), lowest.tolist(), strict=True)
    return 1 + max((math.frexp(t)[1] - low for t, low in pairs if t > 0), default=0)


def _available_bits(dtype: torch.dtype) -> int:
    """Bits of a signed integer that the dtype holds exactly: 25 for float32."""
    return 2 - round(math.log2(torch.finfo(dtype).eps))


def round_weights(
    model: nn.Module, bits: int = 8, only: Iterable[str] | None = None, inplace: bool = False
) -> tuple[nn.Module, Table[Rounded]]:
    """Round weights and biases to multiples of a power of two, so that sums of counts are exact.

    Each output channel has its own power of two, the finest at which its weights are signed integers of ``bits``
    bits. The bias is rounded to the same multiples; it may need more bits. Rounding twice is rounding once.

    Args:
        model: any model; its convolutions and linear layers are rounded.
        bits: 2 to 16.
        only: paths of the layers to round; by default all, also those with real-valued input, which need not be.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        the model, and how far each layer moved.

    Raises:
        ValueError: ``bits`` out of range, ``only`` names no such layer, weights that are not finite.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits must be an integer from 2 to 16, got {bits!r}")
    model = model if inplace else _duplicate(model)
    every = model.named_modules(remove_duplicate=False)
    layers: dict[str, Any] = {path: m for path, m in every if isinstance(m, WEIGHTED)}
    once = {m: path for path, m in reversed(layers.items())}  # a shared layer under its first path
    names = [path for path in layers if path in once.values()] if only is None else list(only)
    missing = [name for name in names if name not in layers]
    if missing:
        raise ValueError(f"no convolution or linear layer at {missing}; there are: {', '.join(layers)}")
    for name in names:
        _check_plain(name, layers[name])
        if _sum_bits(layers[name], 1) is None:
            raise ValueError(f"{name!r} has weights that are not finite: nothing was rounded")
        if bits > _available_bits(layers[name].weight.dtype):
            raise ValueError(
                f"{layers[name].weight.dtype} cannot hold the weights of {name!r} in {bits} bits"
            )
    return model, Table(_round(name, layers[name], bits) for name in names)


@torch.no_grad()
def _round(path: str, module: Any, bits: int) -> Rounded:
    largest = _rows(module).abs().amax(1)
    exponent = _top_bits(largest) - bits + 1
    exponent += _scaled(largest, -exponent).round() >= 2 ** (bits - 1)
    if module.bias is not None:
        # Beside weights that are nearly zero, as folding may leave them, a bias would need too many bits.
        exponent = torch.maximum(exponent, _top_bits(module.bias.double()) - max(16, bits))
    moves = [_to_multiples(module.weight, _by_weight(module, exponent))]
    size = module.weight.double().square().mean().sqrt()
    if module.bias is not None:
        moves.append(_to_multiples(module.bias, exponent))
    move = torch.cat(moves)
    relative = float(moves[0].square().mean().sqrt() / size) if float(size) else 0.0
    return Rounded(path, bits, float(move.abs().max()), relative)


def _top_bits(x: Tensor) -> Tensor:
    """The smallest e with ``|x| <= 2**e`` of each element (float64); a low number for 0."""
    mantissa, exponent = torch.frexp(x.abs())
    return torch.where(x == 0, -10_000, exponent.long() - (mantissa == 0.5).long())


def _by_weight(module: Any, exponent: Tensor) -> Tensor:
    """A number per output channel, [outputs], in a shape that broadcasts against the weights."""
    if isinstance(module, TRANSPOSED):
        exponent = exponent.reshape(module.groups, -1).repeat_interleave(
            module.in_channels // module.groups, 0
        )
    return exponent.reshape(*exponent.shape, *(1,) * (module.weight.dim() - exponent.dim()))


def _to_multiples(x: Tensor, exponent: Tensor) -> Tensor:
    """Round ``x`` to multiples of ``2**exponent`` in place; the moves, flat, in float64."""
    before = x.double()
    x.copy_(_scaled(_scaled(before, -exponent).round() + 0.0, exponent))  # no -0
    return (x.double() - before).flatten()


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2**exponent`` in float64; the power is made of its bits, for exp2 may round."""
    return x * ((exponent.clamp(-1022, 1022) + 1023) << 52).view(torch.float64)


def fold_batchnorm(model: nn.Module) -> fx.GraphModule:
    """A traced copy, in evaluation mode, with each BatchNorm that directly follows a convolution folded into it.

    Folding rounds: results change in the last bits. Fold first, then round the weights. A BatchNorm stays where it
    stands behind something else, or where one of the two is used elsewhere too.

    Raises:
        DeployError: the model cannot be traced.
    """
    traced = _trace(_duplicate(model).eval())
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    for nodes in calls.values():
        conv, norm = _foldable(traced, nodes, calls)
        if norm is None:
            continue
        _check_plain(conv, traced.get_submodule(conv))
        parent, _, name = conv.rpartition(".")
        fused = fuse_conv_bn_eval(traced.get_submodule(conv), norm)  # type: ignore[type-var]
        setattr(traced.get_submodule(parent), name, fused)
        for node in nodes:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _foldable(
    traced: fx.GraphModule, nodes: list[fx.Node], calls: Mapping[str, list[fx.Node]]
) -> tuple[str, Any]:
    """Path of the one convolution that all calls ``nodes`` of a BatchNorm follow, and the BatchNorm, or None."""
    norm: Any = traced.get_submodule(str(nodes[0].target))
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return "", None
    before = [n.args[0] for n in nodes if n.args]
    convs = [n for n in before if isinstance(n, fx.Node) and n.op == "call_module" and len(n.users) == 1]
    paths = {str(n.target) for n in convs}
    path = next(iter(paths), "")
    if len(paths) != 1 or not len(convs) == len(nodes) == len(calls[path]):
        return "", None
    return path, norm if isinstance(traced.get_submodule(path), CONVOLUTIONS) else None


def _check_plain(path: str, module: nn.Module) -> None:
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise DeployError(
            f"the weight of {path!r} is computed from other parameters at every call: make it a plain parameter, "
            "e.g. torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )


# Tracing --------------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Takes as one node each module without children, torch's own, and each neuron."""

    def __init__(self, binary: Binary = ()) -> None:
        super().__init__()
        self.binary = binary

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if _held(m) is not None or isinstance(m, self.binary) or next(m.children(), None) is None:
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _held(module: Any) -> neurons.Neuron | None:
    """The neuron that ``module`` is, or that it holds if it is one of our nodes for a framework."""
    if isinstance(module, neurons.Neuron):
        return module
    ours = any(cls.__module__.split(".")[0] == __package__ for cls in type(module).__mro__)
    held = getattr(module, "neuron", None) if ours else None
    return held if isinstance(held, neurons.Neuron) else None


def _levels(path: str, module: Any, binary: Binary) -> int | None:
    """The largest count that a module emits, or None if it is not a spiking neuron."""
    held = _held(module)
    if held is None:
        return 1 if isinstance(module, binary) else None
    if float(getattr(module, "graded_spikes_factor", 1.0)) != 1.0:
        raise DeployError(
            f"{path!r} multiplies its spikes by graded_spikes_factor: move the factor into the weights of the next "
            "layer and set it to 1"
        )
    if isinstance(held, neurons.MSF):
        return held.D
    if getattr(held, "burst", False):
        raise DeployError(f"{path!r} emits bursts, counts without an upper bound: set burst=False")
    return 1


def _duplicate(model: Any) -> Any:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise DeployError(
            f"the model cannot be copied ({error}): if a state still hangs on a graph, reset the neurons first"
        ) from error


def _trace(model: nn.Module, binary: Binary = ()) -> fx.GraphModule:
    tracer = _Tracer(binary)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise DeployError(
            f"torch.fx cannot trace the forward pass: {type(error).__name__}: {error}\nLoops and branches may depend "
            "on constants only (a fixed number of steps, not x.shape[0]); neurons are called as modules; what cannot "
            "be traced belongs in a module without children"
        ) from error
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


@dataclass(frozen=True)
class _Seen:
    """A tensor on the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Probe(fx.Interpreter):
    """Runs a traced model and keeps, by node, what its values look like and how far its neurons count."""

    def __init__(self, module: fx.GraphModule, binary: Binary) -> None:
        super().__init__(module)
        self.binary = binary
        self.seen: dict[str, Any] = {}
        self.levels: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n.name] = pytree.tree_map_only(Tensor, lambda x: _Seen(tuple(x.shape), x.dtype), value)
        if n.op == "call_module":
            self._look_at(str(n.target), value)
        return value

    def _look_at(self, path: str, value: Any) -> None:
        # After the call: a node hands its settings to its neuron at each call.
        levels = _levels(path, self.fetch_attr(path), self.binary)
        if levels is None:
            return
        s = value[0] if isinstance(value, tuple | list) else value
        if not bool(((s >= 0) & (s <= levels) & (s == s.round())).all()):
            raise DeployError(f"{path!r} emits something else than counts 0..{levels} on the example")
        self.levels[path] = levels


# Writing the binary network -------------------------------------------------------------------------------------------

# Operations by name, as functions of torch, methods or attributes. Wiring moves, copies or leaves out spikes.
WIRING = {
    *("T", "cat", "chunk", "clone", "concat", "contiguous", "detach", "dropout", "expand", "flatten", "flip"),
    *("getitem", "mT", "movedim", "narrow", "pad", "permute", "repeat", "reshape", "roll", "select", "split"),
    *("squeeze", "stack", "swapaxes", "transpose", "unbind", "unflatten", "unsqueeze", "view"),
}
JOINING = {"cat", "concat", "stack"}
POOLS = [f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)]
CASTS = {"double", "float", "half", "to"}
MAXIMA = {"amax", "maximum", *POOLS, *(f"{pool}_with_indices" for pool in POOLS)}
AVERAGES = {"mean", "sum", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))}
QUERIES = {"device", "dim", "dtype", "ndim", "ndimension", "numel", "shape", "size"}

# Modules, by the name of their class or of one that it comes from.
MODULE_OPERATIONS = {
    **dict.fromkeys(("Flatten", "Unflatten"), "flatten"),
    **dict.fromkeys(("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropPath"), "clone"),
    **dict.fromkeys(("ZeroPad1d", "ZeroPad2d", "ZeroPad3d"), "clone"),
    **{f"MaxPool{n}d": f"max_pool{n}d" for n in (1, 2, 3)},
    **{f"AdaptiveMaxPool{n}d": f"adaptive_max_pool{n}d" for n in (1, 2, 3)},
    **{f"AvgPool{n}d": f"avg_pool{n}d" for n in (1, 2, 3)},
    **{f"AdaptiveAvgPool{n}d": f"adaptive_avg_pool{n}d" for n in (1, 2, 3)},
}


@dataclass(frozen=True)
class _Planes:
    """The binary tensors that a count is made of, as nodes of the new graph, and what a spike of each is worth."""

    nodes: tuple[fx.Node, ...]
    weights: tuple[int, ...]
    levels: int
    ordered: bool
    """A spike in one plane means one in each plane before it: then the maximum of counts is that of each plane."""
    source: str


@dataclass(frozen=True)
class _Emitted:
    """The tuple that a neuron returned; its first element are the counts."""

    node: fx.Node
    levels: int
    path: str


class _Writer:
    """Copies the graph of a traced model node by node; where a count stood, its planes stand."""

    def __init__(self, traced: fx.GraphModule, probe: _Probe, form: str, counts: Iterable[str]) -> None:
        self.traced, self.form, self.counts = traced, form, set(counts)
        self.seen, self.levels = probe.seen, probe.levels
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node | _Planes | _Emitted] = {}
        self.modules: dict[str, Any] = {}
        self.made: dict[tuple[Any, ...], str] = {}
        self.counted: dict[_Planes, fx.Node] = {}
        self.report: Table[Layer] = Table()
        self.inexact: dict[str, tuple[int | None, int]] = {}
        self.twins: list[tuple[fx.Node, fx.Node]] = []
        self.called = {str(n.target) for n in traced.graph.nodes if n.op == "call_module"}
        self.busy: set[fx.Node] = set()
        for node in reversed(traced.graph.nodes):
            if self._computes(node) or any(user in self.busy for user in node.users):
                self.busy.add(node)

    def write(self) -> BinaryNetwork:
        for node in self.traced.graph.nodes:
            self.env[node] = self._visit(node)
        given = {row.layer for row in self.report if row.input == "counts"}
        if self.counts - given:
            raise DeployError(f"nothing of the name(s) {sorted(self.counts - given)} takes counts")
        if not self.levels:
            raise DeployError("the model calls no spiking neuron: there are no counts to expand")
        self._check_exact()
        net = BinaryNetwork(self.modules, self.graph, type(self.traced).__name__)
        net.report = self.report
        return net.eval().requires_grad_(False)

    # Nodes.

    def _visit(self, node: fx.Node) -> fx.Node | _Planes | _Emitted:
        if node.op == "call_module" and node.target in self.levels:
            return self._neuron(node)
        sources = [n for n in node.all_input_nodes if isinstance(self.env[n], _Planes)]
        if not sources:
            return self._without_planes(node)
        name = self._operation(node)
        if name in QUERIES:
            return self._copy(node, {n: self._planes(n).nodes[0] for n in sources})
        if self._label(node) in self.counts:
            self._row(node, "counts", self._planes(sources[0]))
            return self._copy(node)
        if node not in self.busy:
            # A readout: no layer or neuron behind it, so it may have the counts.
            return self._copy(node)
        if isinstance(self._module(node), WEIGHTED):
            return self._layer(node, sources)
        if name in WIRING or (name in CASTS and self._keeps_dtype(node, sources)):
            return self._wire(node, name, sources)
        if name in MAXIMA:
            return self._maximum(node, sources)
        if name in AVERAGES:
            return self._average(node, name, sources)
        if name == "add":
            return self._add(node, sources)
        if name == "mul" and self._both_binary(node):
            return self._each(node, sources)  # an AND gate
        raise self._refusal(node, sources, *_advice(name))

    def _without_planes(self, node: fx.Node) -> fx.Node | _Planes:
        emitted = [(n, e) for n in node.all_input_nodes if isinstance(e := self.env[n], _Emitted)]
        if emitted and node.target is operator.getitem and isinstance(node.args[1], int):
            (before, e), length = emitted[0], len(self.seen[emitted[0][0].name])
            new = self._copy(node)
            return self._expand(new, e.levels, e.path, before) if node.args[1] % length == 0 else new
        if emitted and node in self.busy:
            raise DeployError(
                f"{self._where(node)} takes the whole output of {emitted[0][1].path!r}: unpack it first, "
                "spikes, state = neuron(x)"
            )
        if isinstance(self._module(node), WEIGHTED):
            self._row(node, "real")
        return self._copy(node)

    def _neuron(self, node: fx.Node) -> _Planes | _Emitted:
        path = str(node.target)
        for n in node.all_input_nodes:
            planes = self.env[n]
            if isinstance(planes, _Planes):
                self._row(node, "binary", planes)
        new = self._copy(node)
        if isinstance(self.seen[node.name], _Seen):
            return self._expand(new, self.levels[path], path, node)
        return _Emitted(new, self.levels[path], path)

    def _expand(self, new: fx.Node, levels: int, path: str, node: fx.Node) -> _Planes:
        """The planes of the counts ``new``, which the neuron at ``path`` emitted."""
        if levels == 1:
            return _Planes((new,), (1,), 1, True, path)
        seen = self.seen[node.name]
        dtype = (seen if isinstance(seen, _Seen) else seen[0]).dtype
        weights = plane_weights(levels, self.form)
        name = self._make(f"{path}_expand", (dtype,), lambda: Expand(levels, self.form, dtype))
        planes = self.graph.call_module(name, (new,))
        nodes = tuple(self.graph.call_function(operator.getitem, (planes, i)) for i in range(len(weights)))
        return _Planes(nodes, weights, levels, self.form != "bits", path)

    def _layer(self, node: fx.Node, sources: list[fx.Node]) -> fx.Node:
        """A layer with weights: wider, or called on sub-steps whose outputs are summed."""
        path, module = str(node.target), self._module(node)
        (source,) = sources
        planes = self._planes(source)
        if len(planes.nodes) == 1:
            self._row(node, "binary", planes)
            return self._copy(node, {source: planes.nodes[0]})
        _check_plain(path, module)
        self._row(node, "binary", planes, self._accumulator(path, module, planes.levels))
        spatial, count = module.weight.dim() - 2, len(planes.nodes)
        if self.form == "channels":
            merge = self._make(f"{path}_merge", (), lambda: Merge(-1 - spatial))
            name = self._make(path, (count,), lambda: _wide(module, count))
            merged = self.graph.call_module(merge, planes.nodes)
            return self._twin(node, self._copy(node, {source: merged}, name))
        if len(self.seen[source.name].shape) < spatial + 2:
            raise self._refusal(
                node, sources, "has no batch axis for the sub-steps", "unsqueeze one, or use form='channels'"
            )
        name = self._make(path, ("bare",), lambda: _without_bias(module))
        y = self._copy(node, {source: self._merge_steps(planes)}, name)
        collect = self._make(
            f"{path}_collect", planes.weights, lambda: Collect(planes.weights, module.bias, spatial)
        )
        return self._twin(node, self.graph.call_module(collect, (y,)))

    def _wire(self, node: fx.Node, name: str, sources: list[fx.Node]) -> _Planes:
        if self._real_operand(node, sources):
            raise self._refusal(
                node,
                sources,
                "joins spikes with real values" if name in JOINING else "is given another tensor",
                "join only the outputs of neurons, each through a layer of its own otherwise",
            )
        if name == "dropout" and _argument(node, 2, "training", _argument(node, 2, "train", False)):
            raise self._refusal(
                node, sources, "drops spikes in evaluation too", "give it training=self.training"
            )
        if name == "pad":
            mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
            if mode == "constant" and value not in (None, 0):
                raise self._refusal(node, sources, f"pads with {value}", "pad spikes with 0")
        return self._each(node, sources)

    def _maximum(self, node: fx.Node, sources: list[fx.Node]) -> _Planes:
        planes = [self._planes(n) for n in sources]
        if not isinstance(self.seen[node.name], _Seen):
            raise self._refusal(
                node, sources, "returns indices too", "the planes have none: return_indices=False"
            )
        if not all(p.ordered for p in planes):
            bits = self.form == "bits" and any(2 in p.weights for p in planes)
            raise self._refusal(
                node,
                sources,
                "takes a maximum of bits" if bits else "takes a maximum of sums of spikes",
                "use form='channels' or 'substeps', where a maximum of counts is that of each plane"
                if bits
                else "pool before the addition, or behind the next neuron",
            )
        if self._real_operand(node, sources):
            raise self._refusal(
                node, sources, "compares spikes with real values", "compare outputs of neurons only"
            )
        return self._each(node, sources)

    def _average(self, node: fx.Node, name: str, sources: list[fx.Node]) -> fx.Node:
        """A linear layer of its own; what comes out is real-valued."""
        (source,) = sources
        planes, window = self._planes(source), self._window(node, name, source)
        if len(planes.nodes) == 1:
            self._row(node, "binary", planes)
            return self._twin(node, self._copy(node))
        if name != "sum" and (window is None or window & (window - 1)):
            size = "unequal windows" if window is None else f"windows of {window}"
            raise self._refusal(
                node,
                sources,
                f"averages {size}, which rounds",
                "average a power of two of elements without padding (2x2, 4x4), take a maximum, or use a depthwise "
                "convolution with rounded weights",
            )
        bits = (planes.levels * (window or 1)).bit_length() + 1
        if bits > _available_bits(self.seen[source.name].dtype):
            raise self._refusal(node, sources, f"needs sums of {bits} bits", "use a wider dtype")
        self._row(node, "binary", planes, bits)
        averaged = self._each(node, sources)
        if name == "mean" or name.startswith("adaptive"):
            # Their windows follow the sizes of the input, which may be others later.
            sizes = self.seen[source.name].shape[-int(name[-2]) :] if name != "mean" else ()
            guard = self._make(f"{node.name}_window", (), lambda: Window(window or 1, sizes))
            first = self.graph.call_module(guard, (planes.nodes[0], averaged.nodes[0]))
            averaged = replace(averaged, nodes=(first, *averaged.nodes[1:]))
        return self._twin(node, self._count(averaged))

    def _window(self, node: fx.Node, name: str, source: fx.Node) -> int | None:
        """Number of elements that each average is over; None if they differ."""
        before, after = self.seen[source.name].shape, self.seen[node.name].shape
        if name in ("mean", "sum"):
            return math.prod(before) // max(1, math.prod(after))
        n = int(name[-2])
        if name.startswith("adaptive"):
            sizes = list(zip(before[-n:], after[-n:], strict=True))
            return None if any(a % b for a, b in sizes) else math.prod(a // b for a, b in sizes)
        module = self._module(node)
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        defaults = (None, None, 0, False, True, None)
        kernel, _, padding, ceil, include, divisor = (
            _argument(node, i + 1, key, default) if module is None else getattr(module, key, default)
            for i, (key, default) in enumerate(zip(names, defaults, strict=True))
        )
        if divisor is not None:
            return int(divisor)
        padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
        if ceil or (padded and not include):
            return None
        kernel = tuple(kernel) if isinstance(kernel, tuple | list) else (kernel,)
        return math.prod(kernel if len(kernel) == n else kernel * n)

    def _add(self, node: fx.Node, sources: list[fx.Node]) -> fx.Node | _Planes:
        """Counts plus counts: the planes of both. Counts plus anything else: synapses of weight 1."""
        both = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        if _argument(node, 2, "alpha", 1) != 1:
            raise self._refusal(node, sources, "adds with alpha", "move the factor into a layer's weights")
        if len(both) < 2 or set(both) != set(sources):
            self._row(node, "binary", self._planes(sources[0]))
            return self._copy(node)
        shapes = {self.seen[n.name].shape for n in both}
        if len(shapes) > 1:
            raise self._refusal(node, sources, f"adds counts of shapes {sorted(shapes)}", "expand one first")
        left, right = (self._planes(n) for n in both)
        return _Planes(
            left.nodes + right.nodes,
            left.weights + right.weights,
            left.levels + right.levels,
            False,
            f"{left.source} + {right.source}",
        )

    def _each(self, node: fx.Node, sources: list[fx.Node]) -> _Planes:
        """The operation on each plane by itself. Operands with fewer planes have silent ones in their place."""
        planes = [self._planes(n) for n in sources]
        longest = max(planes, key=lambda p: len(p.nodes))
        if any(p.weights != longest.weights[: len(p.nodes)] for p in planes):
            raise self._refusal(
                node, sources, "joins sums of bits of different lengths", "use form='channels' or 'substeps'"
            )
        padded = {n: self._pad(p, len(longest.nodes)) for n, p in zip(sources, planes, strict=True)}
        nodes = tuple(self._copy(node, {n: padded[n][i] for n in sources}) for i in range(len(longest.nodes)))
        name = " and ".join(dict.fromkeys(p.source for p in planes))
        levels, ordered = max(p.levels for p in planes), all(p.ordered for p in planes)
        return _Planes(nodes, longest.weights, levels, ordered, name)

    def _pad(self, planes: _Planes, count: int) -> list[fx.Node]:
        missing = count - len(planes.nodes)
        return [
            *planes.nodes,
            *(self.graph.call_function(torch.zeros_like, (planes.nodes[0],)) for _ in range(missing)),
        ]

    # What they are made of.

    def _copy(
        self, node: fx.Node, swap: Mapping[fx.Node, fx.Node] | None = None, name: str | None = None
    ) -> fx.Node:
        """``node`` in the new graph; operands that are planes are replaced as in ``swap``, else by their counts."""
        swap = swap or {}
        new = self.graph.node_copy(node, lambda n: swap[n] if n in swap else self._plain(n))
        if node.op == "call_module":
            new.target = name or self._place(str(node.target), self._module(node))
        elif node.op == "get_attr":
            target = str(node.target)
            inside = any(target.startswith(path + ".") for path in self.called)
            value = operator.attrgetter(target)(self.traced)
            new.target = self._place(target.replace(".", "_") if inside else target, value)
        if node.op == "call_module" and node.target in self.levels:
            self._twin(node, new)
        return new

    def _plain(self, node: fx.Node) -> fx.Node:
        value = self.env[node]
        if isinstance(value, _Emitted):
            return value.node
        if not isinstance(value, _Planes):
            return value
        if not isinstance(self.seen[node.name], _Seen):
            raise DeployError(f"{self._where(node)} returns several tensors of spikes: take them one by one")
        return self._count(value)

    def _count(self, planes: _Planes) -> fx.Node:
        """The counts again; exact, for they are small integers."""
        if len(planes.nodes) == 1:
            return planes.nodes[0]
        if planes not in self.counted:
            name = self._make("counts_collect", planes.weights, lambda: Collect(planes.weights))
            self.counted[planes] = self.graph.call_module(name, (self._merge_steps(planes),))
        return self.counted[planes]

    def _merge_steps(self, planes: _Planes) -> fx.Node:
        return self.graph.call_module(self._make("steps_merge", (), lambda: Merge(0)), planes.nodes)

    def _make(self, name: str, key: tuple[Any, ...], make: Callable[[], nn.Module]) -> str:
        """The name of a module that is made once per name and key."""
        if (name, *key) not in self.made:
            self.made[(name, *key)] = self._place(name, make())
        return self.made[(name, *key)]

    def _place(self, name: str, value: Any) -> str:
        """Keep ``value`` under ``name``, or under a longer one if that is taken."""
        while self.modules.get(name, value) is not value:
            name += "_"
        self.modules[name] = value
        return name

    def _twin(self, node: fx.Node, new: fx.Node) -> fx.Node:
        self.twins.append((node, new))
        return new

    # What is known of them.

    def _module(self, node: fx.Node) -> Any:
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _computes(self, node: fx.Node) -> bool:
        """Whether a node belongs to the network, not to the reading of its output."""
        if node.op == "output":
            return False
        if any(n.op == "get_attr" for n in node.all_input_nodes):
            return True
        module = self._module(node)
        if module is None:
            return False
        held = itertools.chain(module.parameters(), module.buffers())
        return node.target in self.levels or next(held, None) is not None

    def _operation(self, node: fx.Node) -> str:
        """The name of a known operation, else an empty word."""
        if node.op == "call_method":
            return str(node.target)
        if node.op == "call_module":
            names = [cls.__name__ for cls in type(self._module(node)).__mro__]
            return next((MODULE_OPERATIONS[name] for name in names if name in MODULE_OPERATIONS), "")
        if node.op != "call_function":
            return ""
        if node.target is getattr:
            return str(node.args[1])
        home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        return getattr(node.target, "__name__", "") if home in ("torch", "_operator") else ""

    def _planes(self, node: fx.Node) -> _Planes:
        planes = self.env[node]
        assert isinstance(planes, _Planes)
        return planes

    def _real_operand(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        """Whether an operand beside the planes is a tensor, or holds one."""
        leaves = pytree.tree_leaves([self.seen[n.name] for n in node.all_input_nodes if n not in sources])
        return any(isinstance(leaf, _Seen) for leaf in leaves)

    def _keeps_dtype(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        return len({self.seen[n.name].dtype for n in (node, *sources)}) == 1

    def _both_binary(self, node: fx.Node) -> bool:
        operands = [self.env[x] if isinstance(x, fx.Node) else None for x in node.args]
        return all(isinstance(x, _Planes) and len(x.nodes) == 1 for x in operands)

    def _accumulator(self, path: str, module: Any, levels: int) -> int | None:
        bits = _sum_bits(module, levels)
        if bits is None or bits > _available_bits(module.weight.dtype):
            self.inexact[path] = (bits, levels)
        return bits

    def _row(
        self, node: fx.Node, kind: str, planes: _Planes | None = None, sum_bits: int | None = None
    ) -> None:
        module, path = self._module(node), self._label(node)
        what = self._operation(node) if module is None else type(module).__name__
        row = Layer(path, what, kind)
        if planes is not None and kind == "counts":
            row = Layer(path, what, kind, levels=planes.levels)
        elif planes is not None:
            count = len(planes.nodes)
            row = Layer(path, what, kind, self.form if count > 1 else None, planes.levels, count, sum_bits)
        if row not in self.report:
            self.report.append(row)

    def _label(self, node: fx.Node) -> str:
        """The path of a module, the name of another operation in the traced graph."""
        return str(node.target) if node.op == "call_module" else node.name

    def _where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target!r} ({type(self._module(node)).__name__})"
        owner = next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]
        name = self._operation(node) or getattr(node.target, "__name__", str(node.target))
        return f"{name}() in {owner!r}" if owner else f"{name}()"

    def _refusal(self, node: fx.Node, sources: list[fx.Node], what: str, remedy: str) -> DeployError:
        planes = [self._planes(n) for n in sources]
        given = ", ".join(f"{p.source} (0..{p.levels})" for p in planes)
        return DeployError(
            f"{self._where(node)} {what}, given the spikes of {given}: {remedy}. "
            f"Or leave it off the binary part, on counts, with counts=[{self._label(node)!r}]"
        )

    def _check_exact(self) -> None:
        if not self.inexact:
            return
        lines, bits = [], 8
        for path, (needed, levels) in self.inexact.items():
            module: Any = self.traced.get_submodule(path)
            available = _available_bits(module.weight.dtype)
            fan_in = _rows(module).shape[1]
            bits = min(bits, math.floor(available - 1 - math.log2(fan_in * levels)) + 1)
            need = "its weights are not finite" if needed is None else f"its sums need {needed} bits"
            lines.append(f"  {path}: {need}, {module.weight.dtype} has {available}")
        remedy = (
            f"model, moved = deploy.round_weights(model, bits={bits}, only={list(self.inexact)})"
            if bits >= 2
            else "convert the model to a wider dtype"
        )
        raise DeployError(
            "sums in another order would round differently, for the weights do not lie on a coarse enough power of "
            "two:\n" + "\n".join(lines) + f"\nremedy: {remedy}"
        )


def _advice(name: str) -> tuple[str, str]:
    """What an operation that is not known does to spikes, and what to do instead."""
    if name in ("mul", "div", "truediv", "sub", "neg"):
        return "changes counts by arithmetic", "move factors into the weights of the next layer"
    if name in ("matmul", "bmm", "einsum", "linear", "scaled_dot_product_attention") or name.startswith(
        "conv"
    ):
        return (
            "multiplies spikes outside a layer",
            "use a module (nn.Linear, nn.Conv2d); products of two spike trains cannot be deployed",
        )
    return (
        "is no operation on binary spikes that is known here",
        "put it before the neuron, or behind the next convolution or linear layer",
    )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class BinaryNetwork(fx.GraphModule):
    """What :func:`to_binary` returns."""

    report: Table[Layer]
    """The layers with weights and the averages, in the order of the forward pass."""

    def __deepcopy__(self, memo: dict[int, Any]) -> BinaryNetwork:
        other = super().__deepcopy__(memo)
        assert isinstance(other, BinaryNetwork)
        other.report = copy.copy(self.report)
        return other


def to_binary(
    model: nn.Module,
    example_input: Any,
    form: str = "channels",
    binary: Binary = (),
    counts: Sequence[str] = (),
) -> BinaryNetwork:
    """The model, in evaluation mode, with every layer behind a neuron on 0 and 1; ``model`` stays as it is.

    Behind a neuron of D levels, spikes may be moved (reshape, flatten, permute, index, concatenate, pad, dropout in
    evaluation), pooled by maximum (unary forms), added to other spikes, and averaged over a power of two of elements;
    convolutions and linear layers sum them. What has no layer or neuron behind it is the readout and gets the counts.
    Anything else raises. Neurons of one level emit 0 and 1 already and are only reported. Layers with real-valued input
    stay as they are.

    Args:
        model: traceable by ``torch.fx``; modules without children and neurons need not be.
        example_input: an input like the real ones, or a tuple of several. Both networks are run on it twice, and
            compared.
        form: ``"channels"``: D times the input channels, each with the weights of its channel. ``"substeps"``: axis 0
            (time or batch) D times as long, the sub-steps of a step next to each other; their outputs are summed and
            the bias added once. ``"bits"``: the same with the bits of the counts, summed with powers of two.
        binary: further classes of modules (a framework's own neurons) that emit 0 and 1.
        counts: paths of modules, and names of other operations, that may have the counts themselves.

    Returns:
        The network; ``.report`` says what each layer is given. Outputs equal those of the model (``torch.equal``: only
        the sign of a zero may differ), for all inputs, where a convolution is computed as a sum of products; an
        algorithm that transforms the weights (Winograd, FFT) may round.

    Raises:
        DeployError: something that cannot be kept, with what to do about it.
    """
    plane_weights(1, form)
    if isinstance(counts, str):
        raise TypeError(f"counts is a list of names, got the string {counts!r}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise DeployError("the model has parameters without a size yet: run it once first")
    with torch.no_grad():
        expected = _run(model, inputs)
        traced = _trace(_duplicate(model).eval(), binary)
        probe = _Probe(_duplicate(traced), binary)
        probe.run(*_cloned(inputs))
        writer = _Writer(traced, probe, form, counts)
        net = writer.write()
        results = _run(net, inputs)
        if not _same(results, expected):
            raise DeployError(_difference(writer, net, inputs, _same(results[:1], expected[:1])))
    return net


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """The outputs of two calls in a row, from the state and random numbers that the model starts with."""
    model = _duplicate(model).eval()
    with _same_random(inputs):
        return [model(*_cloned(inputs)) for _ in range(2)]


def _same_random(inputs: Any) -> Any:
    devices = {x.get_device() for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.is_cuda}
    return torch.random.fork_rng(devices=sorted(devices))


def _cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return pytree.tree_map_only(Tensor, Tensor.clone, inputs)


def _same(one: Any, other: Any) -> bool:
    """Equal structure and values, NaN equal to NaN."""
    (left, kind), (right, other_kind) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    if kind != other_kind:
        return False
    for a, b in zip(left, right, strict=True):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            if type(a) is not type(b) or a != b:
                return False
        elif a.shape != b.shape or a.dtype != b.dtype or not bool(((a == b) | (a.isnan() & b.isnan())).all()):
            return False
    return True


class _Recorder(fx.Interpreter):
    """Runs a traced model and keeps the values of some nodes, by name."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.values = names, dict[str, Any]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = pytree.tree_map_only(Tensor, Tensor.clone, value)
        return value


def _difference(
    writer: _Writer, net: BinaryNetwork, inputs: tuple[Any, ...], first_call_is_equal: bool
) -> str:
    """Where the binary network leaves the model on the example."""
    values = []
    for module, names in (
        (writer.traced, {old.name for old, _ in writer.twins}),
        (net, {new.name for _, new in writer.twins}),
    ):
        recorder = _Recorder(_duplicate(module), names)
        with _same_random(inputs):
            recorder.run(*_cloned(inputs))
        values.append(recorder.values)
    for old, new in writer.twins:
        if not _same(values[0][old.name], values[1][new.name]):
            return (
                f"{writer._where(old)} gives other results on binary input: a class that computes something else than "
                "a weighted sum, or an algorithm that rounds (on a GPU, try torch.backends.cudnn.flags(enabled=False))"
            )
    if first_call_is_equal:
        return (
            "the second call in a row gives other results: the forward pass resets or keeps something that torch.fx "
            "does not see; reset the neurons outside forward"
        )
    return "the traced forward pass gives other results than the model: it does something that torch.fx does not see"
