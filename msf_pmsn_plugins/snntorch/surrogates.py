"""snnTorch's spike functions under our forward: ties fire, and dtypes are kept."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .. import formulas
from ..formulas import standing_for
from ..surrogate import Custom, FireFunction, Soft, Surrogate

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

    def __init__(
        self, function: FireFunction, standing: Surrogate | Custom | None = None, overflows: bool = False
    ) -> None:
        super().__init__()
        self.function = function
        self.standing = standing
        self.overflows = overflows  # the function, and not what stands for it

    @property
    def for_kernels(self) -> FireFunction:
        """What kernels take slopes from: a formula where it gives those of the function."""
        return self.standing or self

    def forward(self, u: Tensor) -> Tensor:
        if self.overflows and self.standing is not None:
            return self.standing(u)
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
    if package != "snntorch.surrogate" or not inspect.isfunction(spike_grad):
        return GradientOf(spike_grad)
    if "." not in name:
        raise TypeError(f"spike_grad={name} makes a surrogate and is none: call it, spike_grad={name}()")
    formula = FORMULAS.get(name.removesuffix(".<locals>.inner"))
    if formula is None:
        return GradientOf(spike_grad)
    standing = standing_for(spike_grad, formula, inspect.getclosurevars(spike_grad).nonlocals)
    # The host's own sigmoid is inf/inf far below the threshold.
    return GradientOf(spike_grad, standing, overflows=formula is formulas.logistic)


FORMULAS: dict[str, formulas.Formula | str] = {
    "SFS": formulas.sparse_fast_sigmoid,
    "atan": "atan",
    "fast_sigmoid": formulas.fast_sigmoid,
    "heaviside": formulas.heaviside,
    "sigmoid": formulas.logistic,
    "spike_rate_escape": formulas.spike_rate_escape,
    "straight_through_estimator": formulas.straight_through,
    "triangular": formulas.triangular,
}
