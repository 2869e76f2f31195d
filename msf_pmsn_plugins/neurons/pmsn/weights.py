"""When the weights of a PMSN are made, and when those made before still hold."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...tensors import PMSNWeights
from ..autograd import packed_by_hooks, transformed

__all__ = ["Weights"]

Make = Callable[[Sequence[Tensor], torch.dtype], PMSNWeights]


class _Made(NamedTuple):
    """Weights, and what they were made of: put in place as one, for other threads read it meanwhile."""

    settings: tuple[Any, ...]
    values: list[Tensor]
    weights: PMSNWeights

    def holds(self, parameters: Sequence[Tensor], settings: tuple[Any, ...]) -> bool:
        """Whether parameters have the values that the weights were made of. Versions would not tell: ``p.data`` has
        its own.
        """
        if settings != self.settings:
            return False
        for known, now in zip(self.values, parameters, strict=True):
            if known.dtype != now.dtype or known.shape != now.shape:
                return False
            if _compare is None or not (known.is_contiguous() and now.is_contiguous()):
                if not torch.equal(known, now):
                    return False
            elif _compare(known.data_ptr(), now.data_ptr(), known.nbytes):
                return False
        return True


class _Graph:
    """Weights that are part of a graph, and the state that the last step with them left."""

    def __init__(self, made: _Made) -> None:
        self.made: _Made | None = made  # None: a backward has passed, perhaps in another thread
        self.left: weakref.ref[Tensor] | None = None

    def leads_to(self, state: Any) -> bool:
        """Whether ``state`` is what the last step left."""
        # detach_() leaves the tensor and takes its graph
        left = None if self.left is None else self.left()
        return left is not None and state is not None and left is state[1] and left.grad_fn is not None


class _OfThread(threading.local):
    """A graph belongs to the thread that builds it: another one's backward would spend it."""

    graph: _Graph | None = None


class Weights:
    """The weights of one neuron, made once and not at every step of a stream.

    Where nothing is differentiated they hold until a parameter or a setting changes, for all threads. Where something
    is, they are part of a graph: the steps of one sequence in one thread, each fed with the state that the last one
    left, share them until a backward has passed through; a state that was detached begins another graph, and gets its
    own.
    """

    def __init__(self) -> None:
        self._kept: _Made | None = None  # of no graph
        self._own = _OfThread()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy or a file starts without

    def __setstate__(self, _state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def get(
        self, make: Make, parameters: Sequence[Tensor], settings: tuple[Any, ...], state: Any
    ) -> PMSNWeights:
        if transformed() or _recorded() or not _plain(parameters):
            return make(parameters, settings[0])
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return self._in_graph(make, parameters, settings, state)
        made = self._kept  # once: another thread may put in its own
        if made is not None and made.holds(parameters, settings):
            return made.weights
        with torch.inference_mode(False), torch.no_grad():  # usable in every mode
            values = [parameter.detach().clone() for parameter in parameters]
            made = _Made(settings, values, make(values, settings[0]))
        if not _faked(made.weights):
            self._kept = made
        return made.weights

    def _in_graph(
        self, make: Make, parameters: Sequence[Tensor], settings: tuple[Any, ...], state: Any
    ) -> PMSNWeights:
        graph = self._own.graph
        # Checkpointing makes this part of the graph again, and must meet the same operations.
        if graph is not None and graph.leads_to(state) and not packed_by_hooks():
            made = graph.made
            if made is not None and made.holds(parameters, settings):
                return made.weights
        with torch.inference_mode(False):  # usable in every mode
            values = [parameter.detach().clone() for parameter in parameters]
            made = _Made(settings, values, make(parameters, settings[0]))
        if _faked(made.weights):
            self._own.graph = None
            return made.weights
        graph = self._own.graph = _Graph(made)
        # Held by the graph that ours holds: a hook that held ours would keep both for ever.
        known = weakref.ref(graph)
        for part in made.weights:
            if part.grad_fn is not None:
                part.register_hook(lambda _grad: _spend(known()))
        return made.weights

    def passed_on(self, weights: PMSNWeights, state: Tensor) -> None:
        """Remember the state that a step with these weights left."""
        if torch.compiler.is_compiling():  # there a state that is kept would come out of the graph
            return
        if state.requires_grad and (graph := self._own.graph) is not None:
            made = graph.made
            graph.left = weakref.ref(state) if made is not None and made.weights is weights else None


def _spend(graph: _Graph | None) -> None:
    """A backward has passed."""
    if graph is not None:
        graph.made = None


def _faked(weights: PMSNWeights) -> bool:
    """Whether a mode that makes fake tensors made these."""
    return any(type(part) not in (Tensor, nn.Parameter) for part in weights)


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
