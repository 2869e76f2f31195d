"""What our ops cost, told to SpikingJelly's counters while one of them watches.

A counter sees a sequence of ours as one operation, of which it has no rule: it would count nothing, or raise if it is
strict. A counter's public table ``rules`` takes them from here, as ``FlopCounter(extra_rules=..)`` would, at the first
call of a node inside a ``DispatchCounterMode``. Ours count as the operations of ``LIFNode``'s own step do there, ten
an update; backward passes twice that. ``NeuronStateCounter`` takes its rules likewise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["RULES", "counted"]

ops, aten = torch.ops.msf_pmsn_plugins, torch.ops.aten
LIF = 10  # charge 4, comparison 2, reset 4


def _named(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)), **kwargs}


def _operations(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Additions, multiplications and comparisons, all updates together."""
    given = _named(op, args, kwargs)
    if "thresholds" in given:
        update = LIF + 2 * (len(given["thresholds"]) - 1)  # a comparison and an addition for each further one
    else:
        # A hidden compartment multiplies and adds complex numbers, 8, and its share is read out, 4; the soma.
        update = 12 * given["w"].shape[-1] + LIF
    passes = 2 if "backward" in op._schema.name else 1
    return passes * update * given["x_seq"].numel()


def _flops(op: Any) -> Callable[..., int]:
    return lambda args, kwargs, out: _operations(op, args, kwargs)


def _bytes(op: Any) -> Callable[..., int]:
    """Two operands read and one result written for each operation, as each operation of a step is counted."""
    return lambda args, kwargs, out: 3 * _operations(op, args, kwargs) * _item(op, args, kwargs)


def _item(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    x: Tensor = _named(op, args, kwargs)["x_seq"]
    return x.element_size()


def _nothing(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    return 0


OURS = [ops.msf.default, ops.msf_backward.default, ops.pmsn.default, ops.pmsn_backward.default]
# By the names of SpikingJelly's classes: it is not imported here.
ALLOCATIONS = {aten.new_empty.default: _nothing, aten.empty_like.default: _nothing}
RULES: dict[str, dict[Any, Callable[..., int]]] = {
    "FlopCounter": {**{op: _flops(op) for op in OURS}, **ALLOCATIONS},
    "MemoryAccessCounter": {**{op: _bytes(op) for op in OURS}, **ALLOCATIONS},
}
# What our nodes do beside: PMSN's weights, once a call and not once an update. A counter leaves them out, as everything
# that it has no rule of, but a strict one would raise, as it does in PMSN's backward pass.
BESIDE = [
    "abs",
    "clamp",
    "complex",
    "conj_physical",
    "copy",
    "cos",
    "empty_like",
    "empty_strided",
    "exp",
    "expm1",
    "floor",
    "full",
    "new_empty",
    "new_empty_strided",
    "new_full",
    "new_ones",
    "new_zeros",
    "relu",
    "scalar_tensor",
    "sin",
    "threshold_backward",
    "view_as_complex",
    "view_as_real",
    "where",
    "zeros",
    "zeros_like",
    "_conj",
    "reshape",
    "_reshape_alias",
    "_unsafe_view",
    "slice",
    "squeeze",
    "permute",
    "transpose",
    "reciprocal",
    "sign",
    "sinh",
    "cosh",
    "sqrt",
    "pow",
    "copy_",
    "fill_",
    "zero_",
    "slice_backward",
    "expand_copy",
    "cat",
    "alias",
    "lift_fresh",
    "as_strided",
    "unsqueeze_",
    "squeeze_",
    "any",
    "isfinite",
    "all",
    "real",
    "imag",
    "resolve_conj",
    "angle",
    "polar",
    "maximum",
    "minimum",
    "log",
    "log1p",
    "tanh",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "ones",
]


def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of a node, with our rules in the counters that watch it; a rule of the user's stays."""

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
            return forward(self, *args, **kwargs)
        with ExitStack() as stack:
            for mode in _get_current_dispatch_mode_stack():
                for counter in getattr(mode, "counters", ()):
                    _add_rules(counter, self, getattr(mode, "strict", False), stack)
            return forward(self, *args, **kwargs)

    return wrapped


def _add_rules(counter: Any, node: Any, strict: bool, stack: ExitStack) -> None:
    names = [cls.__name__ for cls in type(counter).__mro__]
    if "NeuronStateCounter" in names:
        from .tools.counters import state_rule

        counter.extra_state_rules.setdefault(type(node), state_rule)
    kind = next((name for name in names if name in RULES), None)
    if kind is None:
        return
    for op, rule in RULES[kind].items():
        counter.rules.setdefault(op, rule)
    if not strict:
        return
    for op in _beside():
        if op not in counter.rules:  # only while the node runs: of other modules a strict counter raises
            counter.rules[op] = _nothing
            stack.callback(counter.rules.pop, op)


@functools.cache
def _beside() -> list[Any]:
    packets = [getattr(aten, name) for name in BESIDE if hasattr(aten, name)]
    return [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
