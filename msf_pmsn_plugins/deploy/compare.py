"""Both networks on the example: whether they agree, and where they part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .new_graph import NewGraph
from .trace import duplicate


def run_twice(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """The outputs of two calls in a row, from the state and random numbers that the model starts with."""
    model = duplicate(model).eval()
    with same_random(inputs):
        return [model(*cloned(inputs)) for _ in range(2)]


def same_random(inputs: Any) -> Any:
    """Inside, random numbers start from where they stand now; outside they go on as if nothing had run."""
    devices = {x.get_device() for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.is_cuda}
    return torch.random.fork_rng(devices=sorted(devices))


def cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, which a model may change in place."""
    return pytree.tree_map_only(Tensor, Tensor.clone, inputs)


def same_results(one: Any, other: Any) -> bool:
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


class Recorder(fx.Interpreter):
    """Runs a traced model and keeps the values of some nodes, by name."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.values = names, dict[str, Any]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = pytree.tree_map_only(Tensor, Tensor.clone, value)
        return value


def _values(module: fx.GraphModule, names: set[str], inputs: tuple[Any, ...]) -> dict[str, Any]:
    recorder = Recorder(duplicate(module), names)
    with same_random(inputs):
        recorder.run(*cloned(inputs))
    return recorder.values


def difference(new: NewGraph, net: fx.GraphModule, inputs: tuple[Any, ...], first_call_is_equal: bool) -> str:
    """Where the binary network leaves the model on the example."""
    before = _values(new.model.traced, {node.name for node, _ in new.twins}, inputs)
    after = _values(net, {node.name for _, node in new.twins}, inputs)
    for node, twin in new.twins:
        if not same_results(before[node.name], after[twin.name]):
            return (
                f"{new.model.where(node)} gives other results on binary input: a class that computes something else "
                "than a weighted sum, or an algorithm that rounds (on a GPU, try "
                "torch.backends.cudnn.flags(enabled=False))"
            )
    if first_call_is_equal:
        return (
            "the second call in a row gives other results: the forward pass resets or keeps something that torch.fx "
            "does not see; reset the neurons outside forward"
        )
    return "the traced forward pass gives other results than the model: it does something that torch.fx does not see"
