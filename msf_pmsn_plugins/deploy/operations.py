"""What operations do to spikes, by their names as functions of torch, methods or attributes."""

from __future__ import annotations

from typing import Any

from torch import fx

# Wiring moves, copies or leaves out spikes.
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


def advice(name: str) -> tuple[str, str]:
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


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
