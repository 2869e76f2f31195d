"""When the weights of a PMSN are made, and when those made before still hold."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...tensors import PMSNWeights
from ..autograd import packed_by_hooks, transformed

__all__ = ["Weights"]

Make = Callable[[Sequence[Tensor], torch.dtype], PMSNWeights]


class Weights:
    """The weights of one neuron, made once and not at every step of a stream.

    Where nothing is differentiated they hold until a parameter or a setting changes. Where something is, they are part
    of a graph: the steps of one sequence, each fed with the state that the last one left, share them until a backward
    has passed through; a state that was detached begins another graph, and gets its own.
    """

    def __init__(self) -> None:
        self.settings: tuple[Any, ...] = ()
        self.values: list[Tensor] = []
        self.made: PMSNWeights | None = None
        self.left: weakref.ref[Tensor] | None = None  # the state that the last step of the graph left

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy or a file starts without

    def __setstate__(self, _state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def get(
        self, make: Make, parameters: Sequence[Tensor], settings: tuple[Any, ...], state: Any
    ) -> PMSNWeights:
        dtype = settings[0]
        if transformed() or _recorded() or not _plain(parameters):
            self.made = None
            return make(parameters, dtype)
        differentiated = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        settings = (*settings, differentiated)
        if (
            self.made is not None
            and settings == self.settings
            and self._follows(differentiated, state)
            and self._hold(parameters)
        ):
            return self.made
        with torch.inference_mode(False):  # usable in every mode
            values = [parameter.detach().clone() for parameter in parameters]
            if differentiated:
                made = make(parameters, dtype)
                # Held by the graph that self holds: a hook that held self would keep both for ever.
                passed = weakref.WeakMethod(self._passed)
                for part in made:
                    if part.grad_fn is not None:
                        part.register_hook(lambda grad: (passed() or _nothing)(grad))
            else:
                with torch.no_grad():
                    made = make(values, dtype)
        if any(type(part) not in (Tensor, nn.Parameter) for part in made):  # of a mode that makes fake ones
            self.made = None
            return made
        self.settings, self.values, self.made, self.left = settings, values, made, None
        return made

    def _hold(self, parameters: Sequence[Tensor]) -> bool:
        """Whether parameters have the values that the weights were made of. Versions would not tell: ``p.data`` has
        its own.
        """
        for known, now in zip(self.values, parameters, strict=True):
            if known.dtype != now.dtype or known.shape != now.shape:
                return False
            if _compare is None or not (known.is_contiguous() and now.is_contiguous()):
                if not torch.equal(known, now):
                    return False
            elif _compare(known.data_ptr(), now.data_ptr(), known.nbytes):
                return False
        return True

    def passed_on(self, state: Tensor) -> None:
        """Remember the state that a step with these weights left."""
        if not torch.compiler.is_compiling():  # there a state that is kept would come out of the graph
            self.left = weakref.ref(state) if state.requires_grad else None

    def _follows(self, differentiated: bool, state: Any) -> bool:
        if not differentiated:
            return True
        if packed_by_hooks():
            return (
                False  # checkpointing makes this part of the graph again, and must meet the same operations
            )
        # detach_() leaves the tensor and takes its graph
        left = None if self.left is None else self.left()
        return left is not None and state is not None and left is state[1] and left.grad_fn is not None

    def _passed(self, grad: Tensor) -> None:
        """A backward has passed: its graph is spent."""
        self.made = None


def _nothing(grad: Tensor) -> None:
    """What a backward does whose neuron is gone."""


def _memcmp() -> Callable[[int, int, int], int] | None:
    """``memcmp`` of the C library: a tenth of the time of ``torch.equal`` on the few bytes of a neuron."""
    try:
        found = ctypes.CDLL(None).memcmp
    except (TypeError, OSError, AttributeError):  # Windows
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return found


_compare = _memcmp()


def _plain(parameters: Sequence[Tensor]) -> bool:
    """Whether comparing their values costs no waiting, and nobody watches."""
    return all(type(p) is nn.Parameter and p.is_cpu for p in parameters)


def _recorded() -> bool:
    """Whether a tracer records what is computed: it must see the parameters read."""
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
