"""A model as a graph of calls, and what its tensors look like on the example."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .. import neurons
from ..neurons.nodes import held_by
from .report import DeployError

Binary = type | tuple[type, ...]


class Tracer(fx.Tracer):
    """Takes as one node each module without children, torch's own, and each neuron."""

    def __init__(self, binary: Binary = ()) -> None:
        super().__init__()
        self.binary = binary

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if held_by(m) is not None or isinstance(m, self.binary) or next(m.children(), None) is None:
            return True
        return super().is_leaf_module(m, module_qualified_name)


def levels_of(path: str, module: Any, binary: Binary) -> int | None:
    """The largest count that a module emits, or None if it is not a spiking neuron."""
    held = held_by(module)
    if held is None:
        return 1 if isinstance(module, binary) else None
    if (torch.as_tensor(getattr(module, "graded_spikes_factor", 1.0)) != 1.0).any():
        raise DeployError(
            f"{path!r} multiplies its spikes by graded_spikes_factor: move the factor into the weights of the next "
            "layer and set it to 1"
        )
    if isinstance(held, neurons.MSF):
        return held.D
    if getattr(held, "burst", False):
        raise DeployError(f"{path!r} emits bursts, counts without an upper bound: set burst=False")
    return 1


def duplicate(model: Any) -> Any:
    """A deep copy; raise DeployError where a state cannot be copied."""
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise DeployError(
            f"the model cannot be copied ({error}): if a state still hangs on a graph, reset the neurons first"
        ) from error


def trace(model: nn.Module, binary: Binary = ()) -> fx.GraphModule:
    """``model`` as a graph of calls; raise DeployError where its forward pass cannot be traced."""
    tracer = Tracer(binary)
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
class Seen:
    """A tensor on the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Probe(fx.Interpreter):
    """Runs a traced model and keeps, by node, what its values look like and how far its neurons count."""

    def __init__(self, module: fx.GraphModule, binary: Binary) -> None:
        super().__init__(module)
        self.binary = binary
        self.seen: dict[str, Any] = {}
        self.levels: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n.name] = pytree.tree_map_only(Tensor, lambda x: Seen(tuple(x.shape), x.dtype), value)
        if n.op == "call_module":
            self._look_at(str(n.target), value)
        return value

    def _look_at(self, path: str, value: Any) -> None:
        # After the call: a node hands its settings to its neuron at each call.
        levels = levels_of(path, self.fetch_attr(path), self.binary)
        if levels is None:
            return
        s = value[0] if isinstance(value, tuple | list) else value
        if not bool(((s >= 0) & (s <= levels) & (s == s.round())).all()):
            raise DeployError(f"{path!r} emits something else than counts 0..{levels} on the example")
        self.levels[path] = levels
