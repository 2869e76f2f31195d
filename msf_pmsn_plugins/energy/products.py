"""Products of single elements: gates, masks, squares, norms, variances, hand-written attention, samples of images.

Each is one multiplication for each element of the result, also of a count with a count: the k additions that stand for
the product with a count k are cheaper only where the other factor waits in a memory as a weight does, and a
:data:`~msf_pmsn_plugins.energy.RULES` says how often that is. A product of parameters alone can be done once and for
all, so it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rules import Read, Rule, Work

aten = torch.ops.aten


def _each(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    tensors = [x for x in args if isinstance(x, Tensor)]
    if len(tensors) < 2 and not (out.is_floating_point() or out.is_complex()):
        return 0  # arithmetic of indices
    return out.numel() * _real_products(tensors)


def _real_products(tensors: list[Tensor]) -> int:
    """Of one complex product: 4 of two complex factors, 2 of a complex and a real one."""
    return {0: 1, 1: 2}.get(sum(x.is_complex() for x in tensors), 4)


def _added(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """``x + alpha y``."""
    alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
    return 0 if alpha in (1, -1) else out.numel()


def _by_squaring(n: Any) -> int:
    """Multiplications of ``x ** n``, a division among them; a root or a power that is no whole number is a function."""
    if not isinstance(n, int | float) or n != n // 1 or n == 0:
        return 0
    whole = abs(int(n))
    return whole.bit_length() + whole.bit_count() - 2 + (n < 0)


def _power(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    n = args[1]
    if isinstance(n, Tensor) and n.dim() == 0 and not n.is_meta:
        n = n.item()
    return out.numel() * (4 if out.is_complex() else 1) * _by_squaring(n)


def _squares(args: tuple[Any, ...], kwargs: Any, out: Any) -> int:
    """Of a variance, or of the difference of two."""
    tensors = [x for x in args[:2] if isinstance(x, Tensor)]
    one = 2 if any(x.is_complex() for x in tensors) else 1  # of the real and the imaginary part
    return math.prod(torch.broadcast_shapes(*(x.shape for x in tensors))) * one


def _norm(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """Of one tensor, or of the difference of two, without the root."""
    given = [x for x in args if not isinstance(x, Tensor)]
    order = given[0] if given else kwargs.get("ord", kwargs.get("p"))
    return _squares(args, kwargs, out) * _by_squaring(2 if order is None else order)


def _divided(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    return 0 if kwargs.get("rounding_mode") else _scaled(args, kwargs, out)


def _scaled(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """By 1 or -1 nothing is to do; ``1 / x`` is a reciprocal, which torch then multiplies by 1."""
    return 0 if any(x in (1, -1) for x in args if isinstance(x, int | float)) else _each(args, kwargs, out)


def _scattered(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """Each element of the source into its place; without the place's own value, the first of them is no product."""
    own, dim, index, source = args[:4]
    if kwargs.get("reduce", args[4] if len(args) > 4 else None) not in ("prod", "multiply"):
        return 0
    lines = isinstance(source, Tensor) and index.dim() < source.dim()  # an index of whole lines
    products = source.numel() if lines else index.numel()
    if kwargs.get("include_self", True):
        return products
    places = own.new_zeros(own.shape, dtype=torch.int64)
    return products - int((places.index_fill if lines else places.scatter)(dim, index, 1).sum())


def _sampled(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """The corners around each point, weighted, and their weights, which all channels share."""
    grid, mode = args[1], args[2] if len(args) > 2 else 0
    axes = grid.shape[-1]
    points, corners = grid.numel() // axes, 2**axes
    each, shared = {
        0: (corners, corners * (axes - 1)),
        1: (0, 0),  # the nearest
        2: (
            4 * 4 + 4,
            axes * 4 * 3,
        ),  # four rows of four, and a cubic polynomial for each of the four of an axis
    }[mode]
    return out.numel() * each + points * shared


def _along(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """All elements of a line into one."""
    return args[0].numel() - out.numel()


COUNTS: dict[str, Callable[[tuple[Any, ...], Any, Tensor], int]] = {
    **dict.fromkeys(("mul", "mul_"), _scaled),
    **dict.fromkeys(("reciprocal", "reciprocal_"), _each),
    **dict.fromkeys(("addcmul", "addcmul_", "lerp", "lerp_", "glu", "cumprod"), _each),
    **dict.fromkeys(("div", "div_", "addcdiv", "addcdiv_"), _divided),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "rsub"), _added),
    **dict.fromkeys(("pow", "pow_"), _power),
    **dict.fromkeys(("norm", "linalg_vector_norm", "dist"), _norm),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _squares),
    **dict.fromkeys(("mse_loss", "huber_loss", "smooth_l1_loss"), _squares),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler"), _sampled),
    "prod": _along,
}


# The third argument of these is an index: no operand.
SCATTERS = ("scatter", "scatter_", "scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_")


def _rule(count: Callable[[tuple[Any, ...], Any, Any], int], index: int | None = None) -> Rule:
    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, read: Read) -> Work:
        products = count(args, kwargs, out)
        if products:
            for i, x in enumerate(args):
                if isinstance(x, Tensor) and i != index:
                    read(x)
        return Work(products, products)

    return rule


def _bag(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, read: Read) -> Work:
    """Rows of a table, each times its weight, summed: a product of matrices, so a weight of k is k additions."""
    table, indices = args[:2]
    weights = kwargs.get("per_sample_weights", args[6] if len(args) > 6 else None)
    if weights is None:
        return Work()
    width, taken = table.shape[1], indices != kwargs.get("padding_idx", args[8] if len(args) > 8 else -1)
    dense, spikes = int(taken.sum()) * width, read(weights)
    if spikes is None:
        return Work(dense, dense)
    counts, fired = (round(float(x[taken].sum())) * width for x in (spikes.counts, spikes.fired))
    return Work(dense, 0, counts, fired)


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


PRODUCTS: dict[Any, Rule] = {
    **{op: _rule(count) for name, count in COUNTS.items() for op in _overloads(name)},
    **{op: _rule(_scattered, index=2) for name in SCATTERS for op in _overloads(name)},
    **{op: _bag for name in ("_embedding_bag", "_embedding_bag_forward_only") for op in _overloads(name)},
}
