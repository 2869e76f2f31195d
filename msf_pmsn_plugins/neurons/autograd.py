"""What the neurons need of torch's machinery: autograd, dispatch, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["NoSecondDerivative", "loop_vmap", "no_autograd", "no_dispatch", "transformed"]


class NoSecondDerivative(torch.autograd.Function):
    """The backward of a neuron as a function of its own: a second derivative raises instead of being zero."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "a spiking neuron has no second derivative: its gradient comes from a surrogate. Differentiate once, or "
            "use a loop of step() with a surrogate callable that is differentiable twice"
        )


def transformed() -> bool:
    """True where torch compiles, traces or transforms what is called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def no_autograd() -> bool:
    """True where no derivative of any kind can be asked for: an op may then be called without its Function."""
    return not (torch.is_grad_enabled() or transformed())


def no_dispatch(*tensors: Tensor | None) -> bool:
    """True where nobody would see the call of an op: a backend may then be called without torch's dispatcher.

    Modes (counters, fake tensors), profilers, transforms and subclasses of Tensor must go on seeing it.
    """
    return not (
        transformed()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
    ) and all(type(t) in _PLAIN for t in tensors)


_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def loop_vmap(op: Any) -> Callable[..., tuple[Any, Any]]:
    """A vmap rule for a custom op: one call per sample of the mapped axis, results stacked in front."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        calls = []
        for i in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)  # a list of numbers has a list of Nones for its axis
            calls.append(op(*(a.select(axis, i) if isinstance(axis, int) else a for a, axis in pairs)))
        outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
        return outputs, tuple(0 for _ in outputs)

    return rule
