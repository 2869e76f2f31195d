"""Run a model, and leave it as it was, whatever happens on the way."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["arguments", "output_of", "rest", "seeds_kept", "takes_nothing", "undisturbed"]


def arguments(example_input: Any) -> tuple[Any, ...]:
    """What to call the model with: a tuple is its arguments."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def output_of(result: Any) -> Tensor:
    """The spikes in what a neuron returned."""
    return result[0] if isinstance(result, tuple) else result


# Names that repositories give to the method that brings a neuron to rest, besides ``reset``, which others have too.
RESETS = ("reset_mem", "n_reset", "reset_state", "reset_states", "reset_hidden")


def rest(model: nn.Module) -> None:
    """Forget every state that the neurons of ``model`` carry, by their own means; inside :func:`undisturbed`."""
    for module in model.modules():
        own = vars(module)  # of a wrapper that passes attributes on they are the neuron's
        if isinstance(own.get("_memories"), dict):
            own["_memories"].update(own["_memories_rv"])
        elif reset := next(filter(takes_nothing, (getattr(module, name, None) for name in RESETS)), None):
            reset()
        elif takes_nothing(reset := getattr(module, "reset", None)) and not module._parameters:
            reset()  # as the hosts' reset_net does with any module


def takes_nothing(method: Any) -> TypeGuard[Callable[[], Any]]:
    """Whether ``method`` can be called without arguments."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def seeds_kept(model: nn.Module, inputs: Any = ()) -> Iterator[None]:
    """Put the random generators back afterwards, of all devices on which the model or its ``inputs`` lie."""
    tensors = [x for x in (*pytree.tree_leaves(inputs), *model.parameters()) if isinstance(x, Tensor)]
    devices = sorted({x.get_device() for x in tensors if x.is_cuda})
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body and put back all that the modules of ``model`` hold.

    That is their submodules, hooks, modes, buffers, states and other attributes, and what lies in dicts, lists, sets
    and tensors there. Parameters keep their place, not their values.
    """
    before = _Snapshot(model)
    try:
        try:
            yield
        finally:
            before.restore()
    finally:
        before.restore()  # again: an interrupt may have stopped the first


class _Snapshot:
    """What the modules of a model hold, to be put back any number of times."""

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}  # containers by id, kept alive, and what they held
        self._tensors: dict[int, tuple[Tensor, int, Tensor]] = {}
        self._scripted: list[tuple[nn.Module, bool]] = []  # their mode is no attribute
        for module in model.modules():
            self._add(module)
            if isinstance(module, torch.jit.ScriptModule):
                self._scripted.append((module, module.training))
                for buffer in module.buffers():
                    self._add(buffer)

    def _add(self, value: Any) -> None:
        waiting = [value]
        while waiting:
            value = waiting.pop()
            value = vars(value) if isinstance(value, nn.Module) else value
            if isinstance(value, Tensor):
                if not isinstance(value, nn.Parameter) and id(value) not in self._tensors:
                    self._tensors[id(value)] = value, value._version, value.detach().clone()
            elif isinstance(value, dict | list | set | deque | tuple) and id(value) not in self._held:
                content = dict(value) if isinstance(value, dict) else list(value)
                self._held[id(value)] = value, content
                waiting += content.values() if isinstance(content, dict) else content

    def restore(self) -> None:
        for container, content in self._held.values():
            if not isinstance(container, tuple) and not _holds(container, content):
                container.clear()
                if isinstance(container, dict | set):
                    container.update(content)
                else:
                    container.extend(content)
        for module, mode in self._scripted:
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for x, version, content in self._tensors.values():
                # norms update their statistics without a new version
                if x._version != version or not (x.is_meta or torch.equal(x, content)):
                    x.copy_(content)


def _holds(container: Any, content: Any) -> bool:
    """Whether a container holds the very objects of ``content``, in their order."""
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), content.items(), strict=True)
        return all(k is l and v is w for (k, v), (l, w) in pairs)
    return all(v is w for v, w in zip(container, content, strict=True))
