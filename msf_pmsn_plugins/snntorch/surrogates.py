"""snnTorch's spike functions under our forward: ties fire, and dtypes are kept."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..surrogate import Custom, FireFunction, Soft, Surrogate, slope_of

__all__ = ["GradientOf", "SpikeGrad", "as_surrogate", "no_gradient"]

SpikeGrad = str | Surrogate | FireFunction | None


class _OwnForward(torch.autograd.Function):
    """``u >= 0`` in the dtype of ``u``; the gradient goes to ``soft`` unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, u: Tensor) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


class GradientOf(nn.Module):
    """The gradient of a host's spike function under our forward: ties fire, dtypes are kept."""

    by_steps = False  # whether it must itself be given each gradient: its own order of operations, to the bit

    def __init__(self, function: FireFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, u: Tensor) -> Tensor:
        return _OwnForward.apply(self.function(u), u.detach())


def no_gradient(u: Tensor) -> Tensor:
    """``u >= 0`` without a derivative: ``surrogate_disable=True``."""
    return (u >= 0).to(u.dtype).detach()


def as_surrogate(spike_grad: SpikeGrad) -> SpikeGrad:
    """What the neuron is given for the host's ``spike_grad``."""
    ours = spike_grad is None or spike_grad is no_gradient
    if ours or isinstance(spike_grad, (str, Surrogate, Custom, Soft, GradientOf)):
        return spike_grad
    if not callable(spike_grad):
        kind = type(spike_grad).__name__
        raise TypeError(f"spike_grad must be a surrogate's name, a Surrogate or a callable, got {kind}")
    package, name = (getattr(spike_grad, attribute, "") for attribute in ("__module__", "__qualname__"))
    if package == "snntorch.surrogate" and inspect.isfunction(spike_grad) and "." not in name:
        raise TypeError(f"spike_grad={name} makes a surrogate and is none: call it, spike_grad={name}()")
    if (package, name) in OVERFLOWING:
        return Custom(functools.partial(_finite_slope, spike_grad))
    return GradientOf(spike_grad)


# snnTorch's, whose derivative is inf/inf far below the threshold, where it is 0; all are even functions.
OVERFLOWING = {("snntorch.surrogate", "sigmoid.<locals>.inner")}


def _finite_slope(function: FireFunction, u: Tensor) -> Tensor:
    """The host's derivative where it is a number, else that on the other side of the threshold."""
    slope = slope_of(function, u)
    overflowed = slope.isnan() & ~u.isnan()
    return torch.where(overflowed, slope_of(function, u.abs()), slope)
