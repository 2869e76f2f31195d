"""A traced model, and what is known of its calls."""

from __future__ import annotations

import itertools
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from .operations import MODULE_OPERATIONS
from .trace import Probe, Seen


class Model:
    """The traced model; what its neurons emit and its tensors look like on the example."""

    def __init__(self, traced: fx.GraphModule, probe: Probe) -> None:
        self.traced, self.seen, self.levels = traced, probe.seen, probe.levels
        self.called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
        self.busy: set[fx.Node] = set()
        """Nodes that the network computes with, or that lead to such; the rest is the readout."""
        for node in reversed(traced.graph.nodes):
            if self.computes(node) or any(user in self.busy for user in node.users):
                self.busy.add(node)

    def module(self, node: fx.Node) -> Any:
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def computes(self, node: fx.Node) -> bool:
        """Whether a node belongs to the network, not to the reading of its output."""
        if node.op == "output":
            return False
        if any(n.op == "get_attr" for n in node.all_input_nodes):
            return True
        module = self.module(node)
        if module is None:
            return False
        held = itertools.chain(module.parameters(), module.buffers())
        return node.target in self.levels or next(held, None) is not None

    def operation(self, node: fx.Node) -> str:
        """The name of a known operation, else an empty word."""
        if node.op == "call_method":
            return str(node.target)
        if node.op == "call_module":
            names = [cls.__name__ for cls in type(self.module(node)).__mro__]
            return next((MODULE_OPERATIONS[name] for name in names if name in MODULE_OPERATIONS), "")
        if node.op != "call_function":
            return ""
        if node.target is getattr:
            return str(node.args[1])
        home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        return getattr(node.target, "__name__", "") if home in ("torch", "_operator") else ""

    def real_operand(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        """Whether an operand beside the planes is a tensor, or holds one."""
        leaves = pytree.tree_leaves([self.seen[n.name] for n in node.all_input_nodes if n not in sources])
        return any(isinstance(leaf, Seen) for leaf in leaves)

    def keeps_dtype(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        return len({self.seen[n.name].dtype for n in (node, *sources)}) == 1

    def label(self, node: fx.Node) -> str:
        """The path of a module, the name of another operation in the traced graph."""
        return str(node.target) if node.op == "call_module" else node.name

    def where(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target!r} ({type(self.module(node)).__name__})"
        owner = next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]
        name = self.operation(node) or getattr(node.target, "__name__", str(node.target))
        return f"{name}() in {owner!r}" if owner else f"{name}()"
