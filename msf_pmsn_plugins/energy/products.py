"""Products of single elements: gates, masks, squares, hand-written attention and norms.

Each is one multiplication for each element of the result, also of a count with a count: the k additions that stand for
the product with a count k are cheaper only where the other factor waits in a memory as a weight does, and a
:data:`~msf_pmsn_plugins.energy.RULES` says how often that is. A product of parameters alone can be done once and for
all, so it is none.
"""

from __future__ import annotations

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


def _power(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """``x ** n`` by squaring; a root or a power that is no whole number is a function such as exp."""
    n = args[1]
    if not isinstance(n, int | float) or n != n // 1 or n < 2:
        return 0
    n = int(n)
    return out.numel() * (n.bit_length() + n.bit_count() - 2)


def _divided(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    return 0 if kwargs.get("rounding_mode") else _each(args, kwargs, out)


def _along(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> int:
    """All elements of a line into one."""
    return args[0].numel() - out.numel()


COUNTS: dict[str, Callable[[tuple[Any, ...], Any, Tensor], int]] = {
    **dict.fromkeys(("mul", "mul_", "addcmul", "addcmul_", "lerp", "lerp_", "glu", "cumprod"), _each),
    **dict.fromkeys(("div", "div_", "addcdiv", "addcdiv_"), _divided),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "rsub"), _added),
    **dict.fromkeys(("pow", "pow_"), _power),
    "prod": _along,
}


def _rule(count: Callable[[tuple[Any, ...], Any, Tensor], int]) -> Rule:
    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, read: Read) -> Work:
        products = count(args, kwargs, out)
        if products:
            for x in args:
                if isinstance(x, Tensor):
                    read(x)
        return Work(products, products)

    return rule


PRODUCTS: dict[Any, Rule] = {
    getattr(getattr(aten, name), overload): _rule(count)
    for name, count in COUNTS.items()
    for overload in getattr(aten, name).overloads()
}
