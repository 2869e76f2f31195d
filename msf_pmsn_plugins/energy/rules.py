"""Synapses: one rule for each tensor operation that multiplies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

aten = torch.ops.aten


class EnergyError(RuntimeError):
    """Something that cannot be counted, with what to do about it."""


class Work(NamedTuple):
    """What one operation costs. All of it adds up over operations."""

    dense: int = 0
    """Multiply-accumulates if nothing is skipped."""
    macs: int = 0
    """Those of them where no operand is spikes."""
    accumulates: int = 0
    """Where one is: a count k of fan-out f is k*f of them."""
    events: int = 0
    """The same with every count above 0 taken as one: how often a weight is needed."""

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Spikes(NamedTuple):
    """An operand that holds integers only: magnitudes, float64."""

    counts: Tensor

    @property
    def fired(self) -> Tensor:
        return (self.counts != 0).double()


Operand = tuple[Tensor, Spikes | None]
Read = Callable[[Tensor], Spikes | None]
Rule = Callable[[tuple[Any, ...], dict[str, Any], Any, Read], Work]


def spikes_of(x: Tensor) -> Spikes | None:
    """``x`` as magnitudes of spikes if it holds integers only, else None: real values.

    Raises:
        EnergyError: a meta tensor, which holds nothing.
    """
    if x.layout != torch.strided or x.is_nested:
        return None
    if x.is_meta:
        raise EnergyError(
            f"a tensor of shape {tuple(x.shape)} on device 'meta' holds no values, so its spikes cannot be counted: "
            "move the whole net and its input to a real device"
        )
    x = x.detach()
    if x.is_floating_point() and not bool((torch.isfinite(x) & (x == x.round())).all()):
        return None
    return None if x.is_complex() else Spikes(x.double().abs())


def _product(a: Tensor, b: Tensor, read: Read) -> Work:
    """``a @ b``: [*, m, k] times [*, k, n]."""
    rows, columns = a.shape[-2], b.shape[-1]
    dense = a.numel() * columns
    left, right = read(a), read(b)
    if left is None and right is None:
        return Work(dense, dense)

    def pairs(of: Callable[[Spikes], Tensor]) -> int:
        # Every element of a meets every one of b that has its k: the sum over k of two sums.
        x = None if left is None else of(left).sum(-2)
        y = None if right is None else of(right).sum(-1)
        if x is None or y is None:
            return round(float(x.sum()) * columns if x is not None else float(y.sum()) * rows)  # type: ignore[union-attr]
        return round(float((x * y).sum()))

    return Work(dense, 0, pairs(lambda s: s.counts), pairs(lambda s: s.fired))


def _operands(first: int, args: tuple[Any, ...], kwargs: Any, out: Any, read: Read) -> Work:
    return _product(args[first], args[first + 1], read)


def _vector(first: int, args: tuple[Any, ...], kwargs: Any, out: Any, read: Read) -> Work:
    a, b = args[first], args[first + 1]
    return _product(a if a.dim() == 2 else a.unsqueeze(0), b.unsqueeze(-1), read)


def _attention(args: tuple[Any, ...], kwargs: Any, out: Any, read: Read) -> Work:
    q, k, v = args[:3]
    shares = q.new_empty(*q.shape[:-1], k.shape[-2])  # what the softmax makes is real
    first = _product(q, k.transpose(-2, -1), read)
    second = _product(shares, v, lambda x: None if x is shares else read(x))
    return first.plus(second)


def _convolution(args: tuple[Any, ...], kwargs: Any, out: Tensor, read: Read) -> Work:
    x, weight, _bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    per_element = math.prod(weight.shape[1:])
    dense = (x if transposed else out).numel() * per_element
    spikes = read(x)
    if spikes is None:
        return Work(dense, dense)
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups  # of each group
    kernel = torch.ones(groups, 1, *weight.shape[2:], dtype=torch.float64, device=x.device)
    shape = (stride, padding, dilation, transposed, output_padding, groups)

    def reached(counts: Tensor) -> int:
        # All channels of a group have the same fan-out: what lies beyond the border costs nothing.
        counts = counts.unflatten(1, (groups, -1)).sum(2)
        return round(float(aten.convolution.default(counts, kernel, None, *shape).sum())) * outputs

    return Work(dense, 0, reached(spikes.counts), reached(spikes.fired))


RULES: dict[Any, Rule] = {
    aten.mm.default: partial(_operands, 0),
    aten.addmm.default: partial(_operands, 1),
    aten.bmm.default: partial(_operands, 0),
    aten.baddbmm.default: partial(_operands, 1),
    aten.addbmm.default: partial(_operands, 1),
    aten.mv.default: partial(_vector, 0),
    aten.addmv.default: partial(_vector, 1),
    aten.dot.default: partial(_vector, 0),
    aten.convolution.default: _convolution,
}
for _name in (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
):
    if hasattr(aten, _name):
        RULES[getattr(aten, _name).default] = _attention


def measure(
    net: nn.Module | None = None, more: Mapping[Any, Rule] | None = None
) -> Callable[..., tuple[Work, list[Operand]] | None]:
    """A function ``(op, args, kwargs, out, weight=None) -> (Work, operands)`` for the operations of ``net``.

    Operands are the tensors that are no weights, each with its spikes, or None if it is real. ``weight`` and the
    parameters of ``net`` are never taken for spikes, even if they hold integers. An operation without a rule, of its
    own or in ``more``, gives None.
    """
    parameters = list(net.parameters()) if net is not None else []
    lazy = any(is_lazy(p) for p in parameters)
    weights = {_storage(p) for p in parameters}

    def measure_one(op: Any, args: tuple[Any, ...], kwargs: Any, out: Any, weight: Any = None) -> Any:
        rule = RULES.get(op) or (more or {}).get(op)
        if rule is None:
            return None
        known = {_storage(p) for p in parameters} if lazy else weights
        operands: list[Operand] = []

        def read(x: Tensor) -> Spikes | None:
            place = _storage(x)
            if x is weight or (place is not None and place in known):
                return None
            operands.append((x, spikes_of(x)))
            return operands[-1][1]

        return rule(args, kwargs or {}, out, read), operands

    return measure_one


def _storage(x: Tensor) -> tuple[Any, ...] | None:
    """What tells whether two tensors share memory; None for a tensor without memory."""
    try:
        return None if x.is_meta or is_lazy(x) else (x.device, x.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):  # sparse
        return None
