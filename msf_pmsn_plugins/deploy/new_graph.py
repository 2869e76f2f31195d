"""The graph of the binary network while it is written."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .model import Model
from .planes import Collect, Merge
from .report import DeployError
from .trace import Seen


@dataclass(frozen=True)
class Planes:
    """The binary tensors that a count is made of, as nodes of the new graph, and what a spike of each is worth."""

    nodes: tuple[fx.Node, ...]
    weights: tuple[int, ...]
    levels: int
    ordered: bool
    """A spike in one plane means one in each plane before it: then the maximum of counts is that of each plane."""
    source: str


@dataclass(frozen=True)
class Emitted:
    """The tuple that a neuron returned; its first element are the counts."""

    node: fx.Node
    levels: int
    path: str


class NewGraph:
    """Nodes and modules of the binary network; where a count of the model stood, its planes stand."""

    def __init__(self, model: Model) -> None:
        self.model, self.graph = model, fx.Graph()
        self.env: dict[fx.Node, fx.Node | Planes | Emitted] = {}
        self.modules: dict[str, Any] = {}
        self.made: dict[tuple[Any, ...], str] = {}
        self.counted: dict[Planes, fx.Node] = {}
        self.twins: list[tuple[fx.Node, fx.Node]] = []
        """A node of the model, and the one here that must have the same value."""

    def copy(
        self, node: fx.Node, swap: Mapping[fx.Node, fx.Node] | None = None, name: str | None = None
    ) -> fx.Node:
        """``node`` in the new graph; operands that are planes are replaced as in ``swap``, else by their counts."""
        swap = swap or {}
        new = self.graph.node_copy(node, lambda n: swap[n] if n in swap else self.plain(n))
        if node.op == "call_module":
            new.target = name or self.place(str(node.target), self.model.module(node))
        elif node.op == "get_attr":
            target = str(node.target)
            inside = any(target.startswith(path + ".") for path in self.model.called)
            value = operator.attrgetter(target)(self.model.traced)
            new.target = self.place(target.replace(".", "_") if inside else target, value)
        if node.op == "call_module" and node.target in self.model.levels:
            self.twin(node, new)
        return new

    def plain(self, node: fx.Node) -> fx.Node:
        value = self.env[node]
        if isinstance(value, Emitted):
            return value.node
        if not isinstance(value, Planes):
            return value
        if not isinstance(self.model.seen[node.name], Seen):
            raise DeployError(
                f"{self.model.where(node)} returns several tensors of spikes: take them one by one"
            )
        return self.count(value)

    def count(self, planes: Planes) -> fx.Node:
        """The counts again; exact, for they are small integers."""
        if len(planes.nodes) == 1:
            return planes.nodes[0]
        if planes not in self.counted:
            name = self.make("counts_collect", planes.weights, lambda: Collect(planes.weights))
            self.counted[planes] = self.graph.call_module(name, (self.merge_steps(planes),))
        return self.counted[planes]

    def merge_steps(self, planes: Planes) -> fx.Node:
        return self.graph.call_module(self.make("steps_merge", (), lambda: Merge(0)), planes.nodes)

    def make(self, name: str, key: tuple[Any, ...], make: Callable[[], nn.Module]) -> str:
        """The name of a module that is made once per name and key."""
        if (name, *key) not in self.made:
            self.made[(name, *key)] = self.place(name, make())
        return self.made[(name, *key)]

    def place(self, name: str, value: Any) -> str:
        """Keep ``value`` under ``name``, or under a longer one if that is taken."""
        while self.modules.get(name, value) is not value:
            name += "_"
        self.modules[name] = value
        return name

    def twin(self, node: fx.Node, new: fx.Node) -> fx.Node:
        self.twins.append((node, new))
        return new

    def pad(self, planes: Planes, count: int) -> list[fx.Node]:
        missing = count - len(planes.nodes)
        return [
            *planes.nodes,
            *(self.graph.call_function(torch.zeros_like, (planes.nodes[0],)) for _ in range(missing)),
        ]
