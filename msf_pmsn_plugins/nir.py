"""MSF, PMSN and ParallelIF in NIR, the intermediate representation that neuromorphic frameworks exchange.

NIR's primitives emit one spike a step, reset to a value and hold a real state. MSF with several thresholds, PMSN and
ParallelIF are not among them: here each has a node of its own (docs/nir.md names the fields), and a file with such a
node is readable with this package only. ``standard=True`` keeps to NIR's primitives and refuses what they cannot say.

::

    graph = export_to_nir(net, example_input)
    nir.write("net.nir", graph)
    net = import_from_nir(read("net.nir"), "snntorch")
"""

from __future__ import annotations

import functools
import graphlib
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__, neurons
from .neurons import Neuron
from .neurons.pmsn import BURSTS, PARAMETERS
from .surrogate import Soft, Surrogate

__all__ = ["export_to_nir", "import_from_nir", "nodes", "read", "registered"]

FORMAT = 1  # of the nodes below: raise it when a field changes its meaning
HOSTS = ("snntorch", "spikingjelly")
OWN = {f"msf_pmsn_plugins.{part}" for part in (*HOSTS, "neurons.msf", "neurons.pmsn", "neurons.parallel_if")}


def _libraries() -> tuple[Any, Any]:
    try:
        import nir
        import nirtorch
    except ImportError as error:
        raise ImportError(f"NIR cannot be imported ({error}): pip install 'msf-pmsn-plugins[nir]'") from error
    return nir, nirtorch


# The nodes, and files with them.


@functools.cache
def nodes() -> dict[str, Any]:
    """The nodes of this package by name: dataclasses on ``nir.NIRNode``."""
    base: Any = _libraries()[0].NIRNode

    class Node(base):
        shape: Any

        def __post_init__(self) -> None:
            import numpy as np

            self.shape = np.asarray(self.shape, dtype=np.int64)
            self.input_type = {"input": self.shape}
            self.output_type = {"output": self.shape}

        @classmethod
        def from_dict(cls, kwargs: dict[str, Any]) -> Any:
            if int(kwargs.get("version", FORMAT)) > FORMAT:
                raise ValueError(
                    f"this {cls.__name__} node has format {int(kwargs['version'])}, and this msf-pmsn-plugins reads up "
                    f"to {FORMAT}: it was written by a newer one, upgrade"
                )
            return super().from_dict(kwargs)

    @dataclass(eq=False, kw_only=True)
    class MSF(Node):
        shape: Any
        thresholds: Any
        threshold_step: float
        charge: str
        train_charge: str
        rate: Any
        learned: int
        input_scale: float
        v_reset: float
        reset: str
        reset_delay: int
        detach_reset: int
        channel_dim: Any
        surrogate: str
        width: float
        graded_spikes_factor: float = 1.0
        version: int = FORMAT
        metadata: dict[str, Any] = field(default_factory=dict)

    @dataclass(eq=False, kw_only=True)
    class PMSN(Node):
        shape: Any
        log_dt: Any
        log_A_real: Any
        A_imag: Any
        VinvB_real: Any
        VinvB_imag: Any
        CV_real: Any
        CV_imag: Any
        D: Any
        tied: int
        channel_dim: Any
        v_threshold: float
        init: str
        reset_mode: str
        burst: str
        coeff: float
        residual: str
        context: str
        dt_scale: float
        surrogate: str
        width: float
        graded_spikes_factor: float = 1.0
        version: int = FORMAT
        metadata: dict[str, Any] = field(default_factory=dict)

    @dataclass(eq=False, kw_only=True)
    class ParallelIF(Node):
        shape: Any
        v_threshold: float
        burst: str
        surrogate: str
        width: float
        graded_spikes_factor: float = 1.0
        version: int = FORMAT
        metadata: dict[str, Any] = field(default_factory=dict)

    return {cls.__name__: cls for cls in (MSF, PMSN, ParallelIF)}


@contextmanager
def registered() -> Iterator[None]:
    """Inside, ``nir.read`` and all that calls it know the nodes of this package; outside, NIR is as it was.

    NIR has no public way to add a node: this enters them in its private list.

    Raises:
        RuntimeError: a version of NIR that keeps its list elsewhere, or has a node of one of these names.
    """
    nir, _ = _libraries()
    listed = getattr(nir.ir, "__all_ir", None)
    if not (isinstance(listed, list) and "LIF" in listed and callable(getattr(nir.ir, "dict2NIRNode", None))):
        raise RuntimeError(
            f"nir {nir.version} keeps its list of nodes in another place, so ours cannot be read: install nir>=1.0.7,<2"
        )
    new = {name: cls for name, cls in nodes().items() if getattr(nir.ir, name, None) is not cls}
    if taken := sorted(name for name in new if name in listed or hasattr(nir.ir, name)):
        raise RuntimeError(f"nir {nir.version} has nodes of its own named {taken}")
    try:
        for name, cls in new.items():
            listed.append(name)
            setattr(nir.ir, name, cls)
        yield
    finally:
        for name in new:
            listed.remove(name)
            delattr(nir.ir, name)


def read(path: str | Path) -> Any:
    """The graph in a file that ``nir.write`` wrote, with nodes of NIR and of this package.

    Raises:
        ValueError: a file with nodes that neither knows.
    """
    nir, _ = _libraries()
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as file:
        if "node" not in file:
            raise ValueError(f"{path} is no NIR file: it has no group 'node', only {sorted(file)}")
        kinds: set[str] = set()
        file["node"].visititems(
            lambda name, item: kinds.add(item[()].decode()) if name.split("/")[-1] == "type" else None
        )
    with registered():
        unknown = sorted(kind for kind in kinds if kind not in getattr(nir.ir, "__all_ir"))
        if unknown:
            raise ValueError(
                f"{path} holds nodes that neither nir {nir.version} nor msf-pmsn-plugins {__version__} knows: "
                f"{', '.join(unknown)}. Another package wrote them: read the file with it"
            )
        return nir.read(path)


# Out of torch.


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _numbers(dims: int | Sequence[int]) -> Any:
    import numpy as np

    return np.atleast_1d(np.asarray(dims, dtype=np.int64))


def _held(module: nn.Module) -> Neuron | None:
    held = module if isinstance(module, Neuron) else getattr(module, "neuron", None)
    return held if isinstance(held, Neuron) else None


def _is_leaky(module: nn.Module) -> bool:
    return type(module).__name__ == "Leaky" and type(module).__module__.startswith("snntorch.")


def _is_neuron(module: nn.Module) -> bool:
    return _held(module) is not None or _is_leaky(module)


def _returns_tuple(module: nn.Module) -> bool:
    if isinstance(module, Neuron):
        return True
    return hasattr(module, "init_hidden") and not (module.init_hidden and not module.output)


def _takes_sequences(module: nn.Module) -> bool:
    return (
        isinstance(module, Neuron)
        or getattr(module, "step_mode", "s") == "m"
        or bool(getattr(module, "sequence", False))
    )


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)


def _layer(module: nn.Module) -> type | None:
    """The layer of torch that ``module`` is, also as SpikingJelly's version of it; None for all else."""
    for kind in LAYERS:
        if type(module) is kind:
            return kind
        if isinstance(module, kind) and type(module).__module__ == "spikingjelly.activation_based.layer":
            return kind
        if isinstance(module, kind) and type(module).__module__.startswith(
            "spikingjelly.activation_based.layer."
        ):
            return kind
    return None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.split(".")[0] in HOSTS or _is_neuron(m) or _layer(m) is not None
        return own or super().is_leaf_module(m, module_qualified_name)


class _Shapes(torch.fx.Interpreter):
    """Runs the layers of a traced net, not its neurons (they keep the shape), and notes the shape of each input."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, torch.Size] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, x = self.fetch_attr(target), args[0]
        if self.shapes.setdefault(target, x.shape) != x.shape:
            raise ValueError(f"{target!r} is called with inputs of two shapes: NIR needs a layer for each")
        if _is_neuron(module):
            return (x, None) if _returns_tuple(module) else x
        return module(*args, **kwargs)


def export_to_nir(net: nn.Module, example_input: Tensor, *, standard: bool = False, dt: float = 1e-4) -> Any:
    """A network as a NIR graph, through ``nirtorch.torch_to_nir``; ``nir.write`` writes it to a file.

    ``net`` is made of linear, convolution, average pooling and flatten layers, additions of two results, and the
    neurons of this package, as nodes of either framework or bare; snnTorch's ``Leaky`` may stand beside them where it
    resets to zero. Dropout is left out. The state is not exported: an imported network is at rest.

    Args:
        net: its ``forward`` computes one time step, or a sequence with layers that take sequences.
        example_input: an input of ``net``; its shape alone matters. No neuron is run and no state changes.
        standard: NIR's primitives only: MSF with one threshold becomes ``nir.LIF`` (``nir.IF`` without leak).
        dt: the time step in seconds, by which ``nir.LIF`` counts its time constant.

    Returns:
        a ``nir.NIRGraph``.

    Raises:
        ValueError: a module, an operation or a setting that has no place in the graph, by name and with the reason.
    """
    _, nirtorch = _libraries()
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be positive and finite, got {dt!r}")
    if _is_neuron(net) or _layer(net) is not None:
        net = nn.Sequential(net)
    traced = _trace(net)
    called = {
        str(call.target): net.get_submodule(str(call.target))
        for call in traced.graph.nodes
        if call.op == "call_module"
    }
    found = [module for module in called.values() if _is_neuron(module)]
    leading = {2 if _takes_sequences(module) else 1 for module in found} or {1}
    if len(leading) > 1:
        raise ValueError(
            "some neurons take steps and some sequences: set all of them to one (step_mode, sequence)"
        )
    shapes = _Shapes(traced)
    with torch.no_grad():
        others = sum(node.op == "placeholder" for node in traced.graph.nodes) - 1
        shapes.run(example_input, *[None] * others)  # these are states, which are not looked at
    exporter = _Exporter(leading.pop(), example_input.dtype, standard, dt)
    made = {id(module): exporter.node(path, module, shapes.shapes[path]) for path, module in called.items()}
    try:
        graph = nirtorch.torch_to_nir(
            traced,
            {type(module): lambda module: made[id(module)] for module in called.values()},
            default_dict={},
            stateful_modules={type(module) for module in found if _returns_tuple(module)},
        )
    except ValueError as error:
        raise ValueError(f"nirtorch cannot make a graph of this network: {error}") from error
    graph.metadata = {"written_by": f"msf-pmsn-plugins {__version__}"}
    return graph


ADVICE = "NIR takes a forward of modules and additions of two results, for one step or one sequence"


def _trace(net: nn.Module) -> torch.fx.GraphModule:
    """``net`` as a graph of calls that NIR can say, without dropout; raise ValueError naming any other call."""
    tracer, name = _Tracer(), type(net).__name__
    try:
        graph = tracer.trace(net)
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise ValueError(f"the forward of {name} cannot be traced ({error}): {ADVICE}") from error
    seen = set()
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = net.get_submodule(str(node.target))
        if _layer(module) in (nn.Dropout, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif not _is_neuron(module) and _layer(module) is None:
            raise ValueError(
                f"{node.target!r} is a {type(module).__name__}, which has no node here; known: "
                f"{', '.join(kind.__name__ for kind in LAYERS)} and the neurons of this package"
                + (": fuse it into the layer before it" if "Norm" in type(module).__name__ else "")
            )
        elif _is_neuron(module) and node.target in seen:
            raise ValueError(
                f"{node.target!r} is called twice: its two uses share a state, two nodes would not"
            )
        seen.add(node.target)
    _check(net, graph)
    return torch.fx.GraphModule(tracer.root, graph)


def _check(net: nn.Module, graph: torch.fx.Graph) -> None:
    """Raise ValueError unless the calls alone say the same: nirtorch leaves out constants and states."""
    first = next(node for node in graph.nodes if node.op == "placeholder")

    def of_neuron(node: Any) -> bool:
        call = isinstance(node, torch.fx.Node) and node.op == "call_module"
        return call and _is_neuron(net.get_submodule(str(node.target)))

    def is_state(node: Any) -> bool:
        is_item = isinstance(node, torch.fx.Node) and node.target is operator.getitem
        return is_item and of_neuron(node.args[0]) and node.args[1] != 0

    def summed(node: Any) -> list[Any]:
        """The results whose sum is ``node``."""
        if node is first:
            return [node]
        if isinstance(node, torch.fx.Node):
            if node.op == "call_module":
                if _returns_tuple(net.get_submodule(str(node.target))) and node.next.op != "output":
                    raise ValueError(
                        f"{node.target!r} returns spikes and state: take the first, [0], of them"
                    )
                return [node]
            if node.target is operator.getitem and of_neuron(node.args[0]) and node.args[1] == 0:
                return [node.args[0]]
            added = (node.op, node.target) in (("call_function", operator.add), ("call_method", "add"))
            if added and len(node.args) == 2 and not node.kwargs:
                parts = [part for argument in node.args for part in summed(argument)]
                if len(set(parts)) != len(parts):
                    raise ValueError(
                        "a result is added to itself, which NIR cannot say: it has one edge from node to node"
                    )
                return parts
        what = getattr(getattr(node, "target", node), "__name__", getattr(node, "target", node))
        raise ValueError(f"the forward of {type(net).__name__} has {what}, which has no node: {ADVICE}")

    for node in graph.nodes:
        if node.op == "call_module":
            summed(node.args[0])
        elif node.op == "call_function" or node.op == "call_method":
            if not is_state(node):
                summed(node)
        elif node.op == "output":
            (out,) = node.args
            results = [
                part for part in (out if isinstance(out, tuple | list) else [out]) if not is_state(part)
            ]
            if len(results) != 1:
                raise ValueError(
                    f"the forward of {type(net).__name__} returns {len(results)} results beside states: NIR has one"
                )
            summed(results[0])


class _Exporter:
    """Modules of torch to nodes of NIR."""

    def __init__(self, leading: int, dtype: torch.dtype, standard: bool, dt: float) -> None:
        self.leading = leading  # axes before the shape of one step: the batch, and time in a sequence
        self.dtype = dtype
        self.standard = standard
        self.dt = dt

    def node(self, path: str, module: nn.Module, shape: torch.Size) -> Any:
        """The node for ``module`` with inputs of ``shape``."""
        try:
            held = _held(module)
            if held is not None:
                return self._neuron(module, held, tuple(shape[self.leading :]))
            if _is_leaky(module):
                return self._leaky(module, tuple(shape[self.leading :]))
            kind = _layer(module)
            assert kind is not None
            return getattr(self, f"_{kind.__name__.lower()}")(module, tuple(shape[self.leading :]))
        except ValueError as error:
            raise ValueError(f"{path!r} ({type(module).__name__}): {error}") from error

    # Layers.

    def _linear(self, module: Any, shape: tuple[int, ...]) -> Any:
        nir, _ = _libraries()
        if len(shape) != 1:
            raise ValueError(
                f"NIR's linear layers take vectors, one step of this input is {shape}: flatten it"
            )
        weight = _array(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, _array(module.bias))

    def _conv(self, module: Any) -> dict[str, Any]:
        import numpy as np

        if module.padding_mode != "zeros":
            raise ValueError(f"NIR pads with zeros, this layer has padding_mode={module.padding_mode!r}")
        weight = _array(module.weight)
        bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
        return {"weight": weight, "bias": bias, "groups": module.groups}

    def _conv1d(self, module: Any, shape: tuple[int, ...]) -> Any:
        nir, _ = _libraries()
        padding = module.padding if isinstance(module.padding, str) else module.padding[0]
        own = {"stride": module.stride[0], "padding": padding, "dilation": module.dilation[0]}
        return nir.Conv1d(input_shape=shape[-1], **own, **self._conv(module))

    def _conv2d(self, module: Any, shape: tuple[int, ...]) -> Any:
        nir, _ = _libraries()
        own = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        return nir.Conv2d(input_shape=shape[-2:], **own, **self._conv(module))

    def _avgpool2d(self, module: Any, shape: tuple[int, ...]) -> Any:
        import numpy as np

        nir, _ = _libraries()
        padded = any(np.atleast_1d(module.padding))
        if (
            module.ceil_mode
            or module.divisor_override is not None
            or (padded and not module.count_include_pad)
        ):
            raise ValueError("NIR has no ceil_mode, divisor_override or count_include_pad=False")
        pairs = {
            name: np.broadcast_to(getattr(module, name), 2).copy()
            for name in ("kernel_size", "stride", "padding")
        }
        return nir.AvgPool2d(**pairs)

    def _flatten(self, module: Any, shape: tuple[int, ...]) -> Any:
        nir, _ = _libraries()
        axes = 1 if hasattr(module, "step_mode") else self.leading  # SpikingJelly's counts without time
        start, end = (d - axes if d >= 0 else d for d in (module.start_dim, module.end_dim))
        if (module.start_dim >= 0 and start < 0) or start < -len(shape):
            raise ValueError(f"start_dim={module.start_dim} would flatten batch or time into the features")
        return nir.Flatten(input_type={"input": _numbers(shape)}, start_dim=start, end_dim=end)

    # Neurons.

    def _neuron(self, module: Any, held: Any, shape: tuple[int, ...]) -> Any:
        if hasattr(module, "hand_over"):  # SpikingJelly: settings live on the node
            module.hand_over(self.dtype)
        for name, why in (
            ("inhibition", "the winner-take-all of the output"),
            ("state_quant", "a quantiser of the state, a function"),
        ):
            if getattr(module, name, False):
                raise ValueError(f"{name} is not in the node: it is {why}")
        factor = getattr(module, "graded_spikes_factor", None)
        graded = 1.0 if factor is None else float(factor.detach())
        if isinstance(factor, nn.Parameter):
            warnings.warn("the learned graded_spikes_factor is exported as a number", stacklevel=2)
        kind = type(held)
        if foreign := [type(own).__name__ for own in (module, held) if type(own).__module__ not in OWN]:
            raise ValueError(
                f"{foreign[0]} has no node (a subclass may compute something else); known: {', '.join(nodes())}"
            )
        if isinstance(held, neurons.MSF):
            if self.standard:
                return self._lif(held, shape, graded)
            return self._msf(module, held, shape, graded)
        if self.standard:
            raise ValueError(
                f"NIR has no primitive for {kind.__name__} (complex state, or a reset by all whole thresholds): export "
                "with standard=False, to a file that this package reads"
            )
        if kind is neurons.PMSN:
            return self._pmsn(held, shape, graded)
        assert kind is neurons.ParallelIF
        surrogate, width = _surrogate(held.surrogate)
        return nodes()["ParallelIF"](
            shape=shape,
            v_threshold=float(held.v_threshold),
            burst=BURSTS[held.burst] or "none",
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
        )

    def _msf(self, module: Any, held: Any, shape: tuple[int, ...], graded: float) -> Any:
        import numpy as np

        if isinstance(held.v_threshold, nn.Parameter):
            if held.v_threshold.dim():
                raise ValueError("a threshold for each channel is not in the node")
            warnings.warn("the learned threshold is exported as a number", stacklevel=2)
        delayed = getattr(module, "reset_delay", None)  # snnTorch's MSF alone has it, and its own subtraction
        train_charge, charge = held.charge
        if "decay" in (train_charge, charge) and train_charge != charge:
            raise ValueError(f"charge={held.charge!r} has two rates, the node one")
        learned = held.decay_logit is not None
        if learned:
            rate = _array(held.decay_logit)
        elif "w" in held._parameters:
            rate = _array(held.w)
        else:
            rate = np.float64(held.decay if held.charge[0] == "decay" or held.tau is None else held.tau)
        surrogate, width = _surrogate(held.surrogate)
        return nodes()["MSF"](
            shape=shape,
            thresholds=np.asarray(held.thresholds, dtype=np.float64),
            threshold_step=0.0 if held._list is not None else float(held.threshold_step),
            rate=np.atleast_1d(rate),
            learned=int(learned) + int(learned and held.decay_logit.dim() > 0),
            input_scale=float(held.input_scale),
            v_reset=float(held.v_reset) if held.reset_mode == "hard" else 0.0,
            reset="subtract" if delayed is not None and held.reset_mode == "soft" else held.reset_mode,
            reset_delay=int(delayed is not False),
            detach_reset=int(held.detach_reset),
            channel_dim=_numbers(held.channel_dim),
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
            charge=charge,
            train_charge=train_charge,
        )

    def _pmsn(self, held: Any, shape: tuple[int, ...], graded: float) -> Any:
        if held.channels is None:
            raise ValueError(
                "its channel count is not known: run one forward pass or load a state dict first"
            )
        surrogate, width = _surrogate(held.surrogate)
        return nodes()["PMSN"](
            shape=shape,
            **{name: _array(getattr(held, name)) for name in PARAMETERS},
            tied=int(held.tied),
            channel_dim=_numbers(held.channel_dim),
            v_threshold=float(held.v_threshold),
            init=held.init,
            reset_mode=held.reset_mode,
            burst=BURSTS[held.burst] or "none",
            coeff=float(held.coeff),
            residual=held.residual,
            context=held.context,
            dt_scale=float(held.dt_scale),
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
        )

    def _lif(self, held: Any, shape: tuple[int, ...], graded: float) -> Any:
        """MSF as ``nir.LIF``; raise ValueError where NIR's neuron is another one."""
        import numpy as np

        wide = _wide(self.dtype)
        for wrong, why in (
            (held.D != 1, f"D={held.D}: NIR's neurons emit one spike a step"),
            (held.reset_mode != "hard", "NIR's LIF resets to a value, this one does not"),
            (held.charge[1] != "decay", f"charge={held.charge[1]!r} computes in another order of operations"),
            (graded != 1, "NIR's neurons emit 1, not a graded_spikes_factor"),
            (
                isinstance(held.surrogate, Soft) and held.surrogate.soft,
                "a soft surrogate emits parts of spikes",
            ),
            (isinstance(held.v_threshold, Tensor) and held.v_threshold.dim(), "a threshold for each channel"),
        ):
            if wrong:
                raise ValueError(
                    f"standard=True cannot say this MSF: {why}. Export with standard=False, to a file that this "
                    "package reads"
                )
        decay = held.decay
        if isinstance(decay, Tensor):
            like = torch.empty((1, *shape))
            decay = held._learned_decay(like, _torch(wide)).expand(like.shape)[0] if decay.dim() else decay
            decay = _array(decay)
        # NIR fires above its threshold, MSF at it: the same, one number below.
        below = np.nextafter(wide(held.thresholds[0]), wide(-np.inf))
        return self._integrator(decay, shape, float(held.input_scale), below, wide(held.v_reset))

    def _leaky(self, module: Any, shape: tuple[int, ...]) -> Any:
        """snnTorch's Leaky as ``nir.LIF``; raise ValueError where NIR's neuron is another one."""
        import numpy as np

        wide = _wide(self.dtype)
        zero = getattr(module.state_function, "__name__", "") == "_base_zero"
        for wrong, why in (
            (not zero, "NIR's LIF resets to a value: reset_mechanism='zero' alone is that"),
            (module.inhibition, "inhibition is not in the node"),
            (bool(module.state_quant), "state_quant is not in the node"),
            (
                bool((module.graded_spikes_factor != 1).any()),
                "NIR's neurons emit 1, not a graded_spikes_factor",
            ),
        ):
            if wrong:
                raise ValueError(why)
        return self._integrator(
            _array(module.beta.clamp(0, 1)), shape, 1.0, np.asarray(_array(module.threshold), wide), wide(0.0)
        )

    def _integrator(self, decay: Any, shape: tuple[int, ...], scale: float, theta: Any, v_reset: Any) -> Any:
        """``v = v_reset + decay (v - v_reset) + scale x`` as NIR has it, ``dv = dt/tau (v_leak - v + r x)``."""
        import numpy as np

        nir, _ = _libraries()
        decay = np.broadcast_to(np.asarray(decay), shape)
        full = {name: np.full(shape, value) for name, value in (("v_threshold", theta), ("v_reset", v_reset))}
        if (decay == 1).all():
            return nir.IF(r=np.full(shape, scale / self.dt), **full)
        tau = np.vectorize(lambda k: _tau(k, self.dt, _wide(self.dtype)))(decay)
        return nir.LIF(tau=tau, r=scale * tau / self.dt, v_leak=full["v_reset"].copy(), **full)


def _wide(dtype: torch.dtype) -> Any:
    """The type of numpy in which a state for inputs of ``dtype`` is kept."""
    import numpy as np

    return np.float64 if dtype == torch.float64 else np.float32


def _torch(wide: Any) -> torch.dtype:
    return torch.float64 if wide(0).itemsize == 8 else torch.float32


def _tau(decay: float, dt: float, wide: Any) -> float:
    """A time constant whose Euler step decays by ``decay`` to the last bit of ``wide``."""
    near = dt / (1.0 - float(decay))
    candidates = (float(f"{near:.12g}"), near, math.nextafter(near, 0), math.nextafter(near, math.inf))
    for kind in (float, wide):  # in double, if it can be
        for candidate in candidates:
            if kind(1.0 - dt / candidate) == kind(decay):
                return candidate
    raise ValueError(
        f"decay {decay!r} is no 1 - dt/tau in {wide.__name__} at dt={dt}: export with standard=False, or from float32"
    )


def _surrogate(value: Any) -> tuple[str, float]:
    if isinstance(value, Surrogate):
        return value.name, float(value.width)
    if isinstance(value, Soft) and value.soft:
        raise ValueError(
            "a soft surrogate emits parts of spikes, NIR's nodes whole ones: lower its temperature to 0"
        )
    warnings.warn(
        f"NIR cannot keep the surrogate {value!r}: spikes are the same, the imported neuron trains with its default",
        stacklevel=2,
    )
    return "default", 0.0


# Into torch.


def import_from_nir(
    graph: Any,
    host: str,
    *,
    dt: float = 1e-4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """A NIR graph as a network of a framework, through ``nirtorch.nir_to_torch``.

    ``nir.LIF`` and ``nir.IF`` become MSF with one threshold. NIR fires above its threshold and MSF at it, so the
    threshold is the next number above NIR's.

    Args:
        graph: a ``nir.NIRGraph`` without cycles, or the path of a file, which :func:`read` reads.
        host: ``"snntorch"`` or ``"spikingjelly"``: whose neurons and layers to build.
        dt: the time step in seconds of ``nir.LIF`` and ``nir.IF``.
        device, dtype: of the network.
        options: for every neuron, in the words of its framework: ``sequence=True``, ``step_mode="m"``, ``backend=..``.
            snnTorch's have ``init_hidden=True``.

    Returns:
        a ``torch.fx.GraphModule`` under nirtorch's convention: ``net(x)`` returns ``(output, state)``. The neurons keep
        their states as always in their framework, so ``state`` may be dropped; reset them between batches.

    Raises:
        ValueError: an unknown host or node, or a node that this framework has nothing for, by name and with the reason.
    """
    nir, nirtorch = _libraries()
    if host not in HOSTS:
        raise ValueError(f"unknown host {host!r}; known: {', '.join(HOSTS)}")
    if isinstance(graph, str | Path):
        graph = read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph or a path, got {type(graph).__name__}")
    before: dict[str, set[str]] = {name: set() for name in graph.nodes}
    for source, target in graph.edges:
        before[target].add(source)
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        raise ValueError(f"recurrent graphs are not imported: {' -> '.join(error.args[1])}") from error
    importer = (_ToSnnTorch if host == "snntorch" else _ToSpikingJelly)(dt, dtype, options)
    table = importer.table()
    names = {id(node): name for name, node in graph.nodes.items()}

    def build(node: Any) -> Any:
        try:
            return table[type(node)](node)
        except ValueError as error:
            raise ValueError(f"node {names[id(node)]!r} ({type(node).__name__}): {error}") from error

    for name, node in graph.nodes.items():
        if type(node) not in table:
            known = ", ".join(sorted(kind.__name__ for kind in table))
            raise ValueError(
                f"node {name!r} is a {type(node).__name__}, which has no module here; known: {known}"
            )
    net = nirtorch.nir_to_torch(
        graph, dict.fromkeys(table, build), default_map={}, device=device, dtype=dtype
    )
    importer.finish(net)
    return net


def _pair(value: Any) -> Any:
    """A number or several, as torch takes it."""
    import numpy as np

    if isinstance(value, str):
        return value
    many = np.atleast_1d(value).tolist()
    return many[0] if len(many) == 1 else tuple(many)


def _uniform(name: str, array: Any) -> float:
    import numpy as np

    values = np.unique(array)
    if values.size != 1:
        raise ValueError(
            f"{name} differs between neurons, from {values.min():g} to {values.max():g}: one is expected"
        )
    return float(values[0])


def _channel_dim(array: Any) -> int | tuple[int, ...]:
    dims = tuple(int(d) for d in array)
    return dims[0] if len(dims) == 1 else dims


class _Importer:
    """Nodes of NIR to modules of torch."""

    layers: Any
    leading = 1

    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        self.dt = dt
        self.dtype = dtype
        self.options = options

    def table(self) -> dict[Any, Callable[[Any], nn.Module]]:
        nir, _ = _libraries()
        return {
            nir.Input: lambda node: nn.Identity(),
            nir.Output: lambda node: nn.Identity(),
            nir.Linear: self.linear,
            nir.Affine: self.linear,
            nir.Conv1d: self.conv,
            nir.Conv2d: self.conv,
            nir.AvgPool2d: self.pool,
            nir.Flatten: self.flatten,
            nir.LIF: self.lif,
            nir.IF: self.lif,
            nodes()["MSF"]: self.msf,
            nodes()["PMSN"]: self.pmsn,
            nodes()["ParallelIF"]: self.parallel_if,
        }

    def finish(self, net: nn.Module) -> None:
        """Settings of the whole network."""

    def msf(self, node: Any) -> nn.Module:
        raise NotImplementedError

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        """The framework's neuron ``name`` with ``settings`` in our own words."""
        raise NotImplementedError

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
        raise NotImplementedError

    def linear(self, node: Any) -> nn.Module:
        bias = getattr(node, "bias", None)
        module = self.layers.Linear(*reversed(node.weight.shape), bias=bias is not None)
        return _filled(module, weight=node.weight, bias=bias)

    def conv(self, node: Any) -> nn.Module:
        weight, groups = node.weight, int(node.groups)
        kind = self.layers.Conv1d if weight.ndim == 3 else self.layers.Conv2d
        module = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_pair(node.stride),
            padding=_pair(node.padding),
            dilation=_pair(node.dilation),
            groups=groups,
        )
        return _filled(module, weight=weight, bias=node.bias)

    def pool(self, node: Any) -> nn.Module:
        return self.layers.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))

    def flatten(self, node: Any) -> nn.Module:
        dims = (int(d) for d in (node.start_dim, node.end_dim))
        return self.layers.Flatten(*(d + self.leading if d >= 0 else d for d in dims))

    def lif(self, node: Any) -> nn.Module:
        import numpy as np

        wide = _wide(self.dtype)
        theta, v_reset = _uniform("v_threshold", node.v_threshold), _uniform("v_reset", node.v_reset)
        r = _uniform("r", node.r)
        if hasattr(node, "tau"):
            tau, leak = _uniform("tau", node.tau), _uniform("v_leak", node.v_leak)
            if leak != v_reset:
                raise ValueError(
                    f"MSF leaks to where it resets, this node leaks to {leak:g} and resets to {v_reset:g}"
                )
            if not tau >= self.dt:
                raise ValueError(
                    f"tau={tau:g} s is shorter than the time step dt={self.dt:g} s: no decay in [0, 1]"
                )
            decay, scale = 1.0 - self.dt / tau, r * self.dt / tau
        else:
            decay, scale = 1.0, r * self.dt
        scale = 1.0 if wide(scale) == 1 or abs(scale - 1) <= 4 * np.finfo(np.float64).eps else scale
        above = float(np.nextafter(wide(theta), wide(np.inf)))
        return self.integrator(decay, scale, above, v_reset)

    def pmsn(self, node: Any) -> nn.Module:
        channels, modes = node.A_imag.shape
        bursts = {word or "none": value for value, word in BURSTS.items()}
        module = self.make(
            "PMSN",
            node,
            channels=channels,
            compartments=modes * (2 if node.tied else 1) + 1,
            channel_dim=_channel_dim(node.channel_dim),
            init=node.init,
            reset_mode=node.reset_mode,
            burst=bursts[node.burst],
            coeff=float(node.coeff),
            residual=node.residual,
            tied=bool(node.tied),
            context=node.context,
            dt_scale=float(node.dt_scale),
        )
        _filled(module.neuron, **{name: getattr(node, name) for name in PARAMETERS})
        return module

    def parallel_if(self, node: Any) -> nn.Module:
        bursts = {word or "none": value for value, word in BURSTS.items()}
        return self.make("ParallelIF", node, burst=bursts[node.burst])


def _filled(module: Any, **arrays: Any) -> Any:
    for name, array in arrays.items():
        if array is not None:
            setattr(module, name, nn.Parameter(torch.tensor(array)))
    return module


def _trained_with(node: Any) -> Surrogate | None:
    return None if node.surrogate == "default" else Surrogate(node.surrogate, float(node.width))


class _ToSnnTorch(_Importer):
    layers = nn

    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(dt, dtype, {"init_hidden": True, **options})
        self.leading = 2 if options.get("sequence") else 1

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        from . import snntorch as face

        kind = getattr(face, name)
        if node is not None:
            settings |= {
                "spike_grad": _trained_with(node),
                "graded_spikes_factor": float(node.graded_spikes_factor),
            }
            if name != "MSF":
                settings["threshold"] = float(node.v_threshold)
        return kind(**settings, **self.options)

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
        if v_reset != 0:
            raise ValueError(
                f"snnTorch resets to zero, this node to {v_reset:g}: import it into SpikingJelly"
            )
        module = self.make("MSF", None, beta=decay, threshold=theta, D=1)
        module.neuron.input_scale = scale
        return module

    def msf(self, node: Any) -> nn.Module:
        for wrong, why in (
            (node.charge != "decay" or node.train_charge != "decay", f"charge={node.charge!r}"),
            (node.reset == "soft", "a reset that subtracts before the decay (snnTorch's does after it)"),
            (float(node.v_reset) != 0, f"v_reset={float(node.v_reset):g}"),
        ):
            if wrong:
                raise ValueError(f"snnTorch's MSF has no {why}: import it into SpikingJelly")
        words = {"hard": "zero", "subtract": "subtract", "none": "none"}
        beta = torch.tensor(node.rate if node.learned == 2 else node.rate[0])
        module = self.make(
            "MSF",
            node,
            beta=beta.sigmoid() if node.learned else float(node.rate[0]),
            learn_beta=bool(node.learned),
            reset_mechanism=words[node.reset],
            reset_delay=bool(node.reset_delay),
            channel_dim=_channel_dim(node.channel_dim),
            **_thresholds(node, "threshold"),
        )
        return _finish_msf(module, node)


class _ToSpikingJelly(_Importer):
    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(dt, dtype, options)
        try:
            from spikingjelly.activation_based import layer
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'msf-pmsn-plugins[spikingjelly]'") from error
        self.layers = layer

    def finish(self, net: nn.Module) -> None:
        from spikingjelly.activation_based import functional

        functional.set_step_mode(net, self.options.get("step_mode", "s"))

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        from . import spikingjelly as face

        if node is not None:
            if float(node.graded_spikes_factor) != 1:
                raise ValueError("SpikingJelly's nodes have no graded_spikes_factor: import it into snnTorch")
            settings["surrogate_function"] = _trained_with(node)
            if name != "MSF":
                settings["v_threshold"] = float(node.v_threshold)
        return getattr(face, f"{name}Node")(**settings, **self.options)

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
        tau = _steps(decay, _wide(self.dtype))
        return self.make(
            "MSF", None, D=1, tau=tau, v_threshold=theta, v_reset=v_reset, **self._scaled(scale, tau)
        )

    def _scaled(self, scale: float, tau: float) -> dict[str, bool]:
        wide = _wide(self.dtype)
        if scale != 1 and wide(scale) != wide(1 / tau):
            raise ValueError(
                f"SpikingJelly scales its input by 1 or 1/tau = {1 / tau:g}, this node by {scale:g}"
            )
        return {"decay_input": scale != 1}

    def msf(self, node: Any) -> nn.Module:
        if node.reset not in ("hard", "soft"):
            raise ValueError(
                f"SpikingJelly has no reset {node.reset!r}: 'subtract' is snnTorch's, after the decay; import it there"
            )
        rate: Any = float(node.rate[0])
        settings: dict[str, Any] = {"charge": (node.train_charge, node.charge)}
        if "plif" in node.charge:
            settings["w"] = torch.tensor(node.rate[0])
        elif node.learned:
            logit = torch.tensor(node.rate if node.learned == 2 else node.rate[0])
            settings |= {"charge": "decay", "learn_tau": True, "tau": 1 / (1 - logit.sigmoid())}
        elif node.charge == "decay":
            tau = _steps(rate, _wide(self.dtype))
            settings |= {"charge": "decay", "tau": tau, **self._scaled(float(node.input_scale), tau)}
        elif "lif" in node.charge:
            settings["tau"] = rate
        module = self.make(
            "MSF",
            node,
            v_reset=None if node.reset == "soft" else float(node.v_reset),
            detach_reset=bool(node.detach_reset),
            channel_dim=_channel_dim(node.channel_dim),
            **_thresholds(node, "v_threshold"),
            **settings,
        )
        return _finish_msf(module, node)


def _thresholds(node: Any, first: str) -> dict[str, Any]:
    values = [float(theta) for theta in node.thresholds]
    if not node.threshold_step:
        return {"thresholds": values}
    return {"D": len(values), first: values[0], "threshold_step": float(node.threshold_step)}


def _finish_msf(module: Any, node: Any) -> Any:
    held = module.neuron
    if node.learned:  # to the bit
        held.decay_logit = nn.Parameter(torch.tensor(node.rate).reshape(held.decay_logit.shape))
    if hasattr(module, "reset_delay"):
        held.input_scale, held.detach_reset = float(node.input_scale), bool(node.detach_reset)
    return module


def _steps(decay: float, wide: Any) -> float:
    """SpikingJelly's ``tau`` in steps, whose ``1 - 1/tau`` is ``decay`` to the last bit of ``wide``."""
    return math.inf if decay == 1 else _tau(decay, 1.0, wide)
