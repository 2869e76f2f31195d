"""Tensors that show a state in other units: an in-place change of one would change nothing of the state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ReadOnly", "changes"]

VALUES_STAY = {"requires_grad_", "detach_", "share_memory_"}


def changes(function: Any) -> bool:
    """Whether a function of ``__torch_function__`` changes the values of its first argument."""
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and name[-2:] != "__" and name not in VALUES_STAY)


class ReadOnly(Tensor):
    """A tensor computed from a state, to look at. What is computed from it is a plain tensor.

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if changes(func) and args and isinstance(args[0], ReadOnly):
            raise RuntimeError(args[0].remedy)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
