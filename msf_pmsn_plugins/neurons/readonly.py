"""Tensors that show a state in other units: an in-place change of one would change nothing of the state."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

__all__ = ["ReadOnly", "changed_by"]

VALUES_STAY = {"requires_grad_", "detach_", "share_memory_"}


def changed_by(function: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """The tensors whose values a call in ``__torch_function__`` would change."""
    name = getattr(function, "__name__", "")
    if name == "__setitem__" or (name.endswith("_") and name[-2:] != "__" and name not in VALUES_STAY):
        first = args[0] if args else None  # of _foreach_mul_ a list
        return tuple(first) if isinstance(first, (list, tuple)) else (first,)
    out = kwargs.get("out") if kwargs else None
    return out if isinstance(out, tuple) else (out,)


class ReadOnly(Tensor):
    """A tensor computed from a state, to look at. What is computed from it, views too, is a plain tensor.

    Raises:
        RuntimeError: an in-place change. (A TypeError in ``v *= 0`` torch takes as leave to compute ``v = v * 0``.)
    """

    remedy: str

    @staticmethod
    def of(tensor: Tensor, remedy: str) -> ReadOnly:
        """``tensor``, which says ``remedy`` where it would be changed."""
        made = tensor.as_subclass(ReadOnly)
        made.remedy = remedy
        return made

    def detach_(self) -> ReadOnly:
        if self.requires_grad:
            raise RuntimeError(self.remedy)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in changed_by(func, args, kwargs):
            if isinstance(tensor, ReadOnly):
                raise RuntimeError(tensor.remedy)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
