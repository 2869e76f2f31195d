"""A membrane that brings the rest of its neuron's state along."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..neurons.readonly import changed_by

__all__ = ["Membrane"]

VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


class Membrane(Tensor):
    """The membrane of the soma before its reset, volts, [B, *]: a tensor that carries ``state``, what else the neuron
    goes on from.

    ``detach``, ``clone``, ``to`` and their like carry it on; of all else (``torch.stack(mem_rec)``, losses) the result
    is a plain tensor.
    """

    state: tuple[Tensor, ...]

    @staticmethod
    def of(membrane: Tensor, state: tuple[Tensor, ...]) -> Membrane:
        """``membrane`` with ``state``; both keep their graphs."""
        with torch._C._ExcludeDispatchKeyGuard(VIEWS):  # of a view detach_ cannot cut the graph
            made = membrane.as_subclass(Membrane)
        made.state = state
        return made

    def each(self, change: Callable[[Tensor], Tensor]) -> Membrane:
        """The same with ``change`` made to the membrane and to each part of the state."""
        plain = self.as_subclass(Tensor)
        return Membrane.of(change(plain), tuple(map(change, self.state)))

    def detach_(self) -> Membrane:
        """Cut the graph here, in place."""
        with torch._C.DisableTorchFunctionSubclass():
            super().detach_()
        self.state = tuple(part.detach() for part in self.state)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Membrane:
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.detach().as_subclass(Tensor).clone()
        return Membrane.of(plain, copy.deepcopy(tuple(part.detach() for part in self.state), memo))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(tensor, Membrane) for tensor in changed_by(func, args, kwargs)):
            raise RuntimeError(
                "an in-place change of this mem leaves the residual and the hidden compartments that it brings along "
                "as they are, and the neuron goes on from those: change all, mem = mem.each(change), where "
                "change(part) returns each part [B, *] with the samples that begin anew at 0"
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            mem = args[0] if args else None
            if func not in CARRIED or not isinstance(mem, Membrane) or not isinstance(out, Tensor):
                return out
            rest = args[1:]
            if func is Tensor.to and any(isinstance(arg, torch.dtype) for arg in (*rest, *kwargs.values())):
                # What it carries keeps its own dtypes: half precision would lose spikes, and one part is complex.
                return Membrane.of(out, tuple(part.to(out.device) for part in mem.state))
            return Membrane.of(out, tuple(func(part, *rest, **kwargs) for part in mem.state))


CARRIED = {
    Tensor.detach,
    Tensor.clone,
    Tensor.to,
    Tensor.cpu,
    Tensor.cuda,
    Tensor.contiguous,
    Tensor.pin_memory,
}
