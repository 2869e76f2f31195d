"""A network as a graph of calls that NIR can say: modules, and additions of two results."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from ..hosts import HOSTS
from ..neurons import Neuron
from ..neurons.nodes import held_by
from ..tensors import floating

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
ADVICE = "NIR takes a forward of modules and additions of two results, for one step or one sequence"


def is_leaky(module: nn.Module) -> bool:
    """Whether it is snnTorch's own."""
    return type(module).__name__ == "Leaky" and type(module).__module__.startswith("snntorch.")


def is_neuron(module: nn.Module) -> bool:
    """Whether it has a node here."""
    return held_by(module) is not None or is_leaky(module)


def returns_tuple(module: nn.Module) -> bool:
    """Whether a call returns spikes and state."""
    if isinstance(module, Neuron):
        return True
    return hasattr(module, "init_hidden") and not (module.init_hidden and not module.output)


def layer_of(module: nn.Module) -> type | None:
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


class Tracer(torch.fx.Tracer):
    """Takes as one node each layer and each neuron."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.split(".")[0] in HOSTS or is_neuron(m) or layer_of(m) is not None
        return own or super().is_leaf_module(m, module_qualified_name)


PURE = (operator.getitem, operator.add, torch.add)


class Shapes(torch.fx.Interpreter):
    """Runs the layers of a traced net, not its neurons (they keep the shape), and notes the shapes of each call."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.inputs: dict[str, torch.Size] = {}
        self.outputs: dict[str, torch.Size] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, x = self.fetch_attr(target), args[0]
        if self.inputs.setdefault(target, x.shape) != x.shape:
            raise ValueError(f"{target!r} is called with inputs of two shapes: NIR needs a layer for each")
        if is_neuron(module):
            x = floating(x)
            self.outputs[target] = x.shape
            return (x, None) if returns_tuple(module) else x
        try:
            y = module(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            given = f"{type(module).__name__}) with an input of shape {tuple(x.shape)}"
            raise ValueError(f"{target!r} ({given}: {error}") from error
        self.outputs[target] = y.shape
        return y


def trace(net: nn.Module) -> torch.fx.GraphModule:
    """``net`` as a graph of calls that NIR can say, without dropout; raise ValueError naming any other call."""
    tracer, name = Tracer(), type(net).__name__
    try:
        graph = tracer.trace(net)
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise ValueError(f"the forward of {name} cannot be traced ({error}): {ADVICE}") from error
    for node in reversed(list(graph.nodes)):  # nirtorch makes an output of a call that nobody uses
        if not node.users and (node.op == "call_module" or node.target in PURE):
            graph.erase_node(node)
    seen = set()
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = net.get_submodule(str(node.target))
        if layer_of(module) in (nn.Dropout, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif not is_neuron(module) and layer_of(module) is None:
            raise ValueError(
                f"{node.target!r} is a {type(module).__name__}, which has no node here; known: "
                f"{', '.join(kind.__name__ for kind in LAYERS)} and the neurons of this package"
                + (": fuse it into the layer before it" if "Norm" in type(module).__name__ else "")
            )
        elif is_neuron(module) and node.target in seen:
            raise ValueError(
                f"{node.target!r} is called twice: its two uses share a state, two nodes would not"
            )
        seen.add(node.target)
    check(net, graph)
    return torch.fx.GraphModule(tracer.root, graph)


def check(net: nn.Module, graph: torch.fx.Graph) -> None:
    """Raise ValueError unless the calls alone say the same: nirtorch leaves out constants and states."""
    calls = Calls(net, next(node for node in graph.nodes if node.op == "placeholder"))
    for node in graph.nodes:
        if node.op == "call_module":
            calls.summed(node.args[0])
        elif node.op in ("call_function", "call_method") and not calls.is_state(node):
            calls.summed(node)
        elif node.op == "output":
            (out,) = node.args
            parts = out if isinstance(out, tuple | list) else [out]
            results = [part for part in parts if not calls.is_state(part)]
            if len(results) != 1:
                raise ValueError(
                    f"the forward of {type(net).__name__} returns {len(results)} results beside states: NIR has one"
                )
            calls.summed(results[0])


class Calls:
    """The calls of a traced network, and what of them NIR can say."""

    def __init__(self, net: nn.Module, first: torch.fx.Node) -> None:
        self.net, self.first = net, first

    def summed(self, node: Any) -> list[torch.fx.Node]:
        """The results whose sum is ``node``; raise ValueError if it is no such sum."""
        if node is self.first:
            return [node]
        if self.is_call(node):
            if returns_tuple(self.module(node)) and node.next.op != "output":
                raise ValueError(f"{node.target!r} returns spikes and state: take the first, [0], of them")
            return [node]
        if self.is_item(node) and node.args[1] == 0:
            return [node.args[0]]
        if _is_addition(node):
            parts = [part for argument in node.args for part in self.summed(argument)]
            if len(set(parts)) != len(parts):
                raise ValueError(
                    "a result is added to itself, which NIR cannot say: it has one edge from node to node"
                )
            return parts
        what = getattr(getattr(node, "target", node), "__name__", getattr(node, "target", node))
        raise ValueError(f"the forward of {type(self.net).__name__} has {what}, which has no node: {ADVICE}")

    def is_state(self, node: Any) -> bool:
        """Whether ``node`` is a part of what a neuron returned beside its spikes."""
        return self.is_item(node) and node.args[1] != 0

    def is_item(self, node: Any) -> bool:
        if not (isinstance(node, torch.fx.Node) and node.target is operator.getitem):
            return False
        return self.is_call(node.args[0]) and is_neuron(self.module(node.args[0]))

    def is_call(self, node: Any) -> bool:
        return isinstance(node, torch.fx.Node) and node.op == "call_module"

    def module(self, node: Any) -> nn.Module:
        return self.net.get_submodule(str(node.target))


def _is_addition(node: Any) -> bool:
    if not isinstance(node, torch.fx.Node) or len(node.args) != 2 or node.kwargs:
        return False
    return (node.op, node.target) in (("call_function", operator.add), ("call_method", "add"))
