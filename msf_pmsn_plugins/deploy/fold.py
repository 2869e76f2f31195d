"""BatchNorm into the convolution before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .trace import duplicate, trace
from .weights import CONVOLUTIONS, check_plain


def fold_batchnorm(model: nn.Module) -> fx.GraphModule:
    """A traced copy, in evaluation mode, with each BatchNorm that directly follows a convolution folded into it.

    Folding rounds: results change in the last bits. Fold first, then round the weights. A BatchNorm stays where it
    stands behind something else, or where one of the two is used elsewhere too.

    Raises:
        DeployError: the model cannot be traced.
    """
    traced = trace(duplicate(model).eval())
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(node.target, []).append(node)
    for nodes in calls.values():
        conv, norm = _foldable(traced, nodes, calls)
        if norm is None:
            continue
        check_plain(conv, traced.get_submodule(conv))
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
