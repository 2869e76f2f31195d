"""Nodes of NIR to modules of torch: what both frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..charges import CHARGES
from ..neurons import MSF, PMSN, Neuron, ParallelIF
from ..neurons.pmsn import BURSTS, PARAMETERS
from ..surrogate import Surrogate
from . import nodes
from .libraries import nir
from .numbers import channel_dims, filled, pair, uniform, wide_type


class Builder:
    """Nodes of NIR to modules of torch."""

    layers: Any
    leading = 1
    delays = False  # whether the framework resets at the next step

    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        self.dt = dt
        self.dtype = dtype
        self.options = options

    def table(self) -> dict[Any, Callable[[Any], nn.Module]]:
        return {
            nir.Input: lambda node: nn.Identity(),
            nir.Output: lambda node: nn.Identity(),
            nir.Linear: self.linear,
            nir.Affine: self.linear,
            nir.Conv1d: self.conv,
            nir.Conv2d: self.conv,
            nir.AvgPool2d: self.pool,
            nir.Flatten: self.flatten,
            nir.LIF: self.lif,
            nir.IF: self.lif,
            nodes.MSF: self.msf,
            nodes.PMSN: self.pmsn,
            nodes.ParallelIF: self.parallel_if,
        }

    def finish(self, net: nn.Module) -> None:
        """Settings of the whole network."""

    def wrap(self, held: Neuron, node: Any) -> Any:
        """The framework's node around a neuron; ``node`` is None where one of NIR's own stood."""
        raise NotImplementedError

    def linear(self, node: Any) -> nn.Module:
        bias = getattr(node, "bias", None)
        module = self.layers.Linear(*reversed(node.weight.shape), bias=bias is not None)
        return filled(module, weight=node.weight, bias=bias)

    def conv(self, node: Any) -> nn.Module:
        weight, groups = node.weight, int(node.groups)
        kind = self.layers.Conv1d if weight.ndim == 3 else self.layers.Conv2d
        module = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=pair(node.stride),
            padding=pair(node.padding),
            dilation=pair(node.dilation),
            groups=groups,
        )
        return filled(module, weight=weight, bias=node.bias)

    def pool(self, node: Any) -> nn.Module:
        return self.layers.AvgPool2d(pair(node.kernel_size), pair(node.stride), pair(node.padding))

    def flatten(self, node: Any) -> nn.Module:
        dims = (int(d) for d in (node.start_dim, node.end_dim))
        return self.layers.Flatten(*(d + self.leading if d >= 0 else d for d in dims))

    def lif(self, node: Any) -> nn.Module:
        wide = wide_type(self.dtype)
        v_reset = uniform("v_reset", node.v_reset)
        decay: Any
        if hasattr(node, "tau"):
            tau, leak = np.asarray(node.tau), uniform("v_leak", node.v_leak)
            if leak != v_reset:
                raise ValueError(
                    f"MSF leaks to where it resets, this node leaks to {leak:g} and resets to {v_reset:g}"
                )
            if not (tau >= self.dt).all():
                raise ValueError(
                    f"tau={tau.min():g} s is shorter than the time step dt={self.dt:g} s: no decay in [0, 1]"
                )
            decay, scales = 1.0 - self.dt / tau, node.r * self.dt / tau
        else:
            decay, scales = np.ones(()), node.r * self.dt
        near = abs(scales - 1) <= 4 * np.finfo(np.float64).eps
        scale = uniform("r*dt/tau", np.where((wide(scales) == 1) | near, 1.0, scales))
        above = np.nextafter(wide(node.v_threshold), wide(np.inf))
        held = MSF(
            D=1,
            decay=one_or_all(decay, wide),
            input_scale=scale,
            v_threshold=one_or_all(above, wide),
            v_reset=v_reset,
        )
        held.reset_delay = self.delays
        return self.wrap(held, None)

    def msf(self, node: Any) -> nn.Module:
        charges = node.train_charge, node.charge
        kinds = {CHARGES[name].rate for name in charges if name in CHARGES}
        rate, first = stored(node.rate, node.learned), stored(node.first_threshold, node.learned_threshold)
        logit = "decay" in kinds and node.learned in (1, 2)
        spaced, detached, delayed = (
            float(node.threshold_step),
            bool(node.detach_reset),
            bool(node.reset_delay),
        )
        undecayed = node.reset == "subtract"
        held = MSF(
            D=len(node.thresholds),
            decay=rate if "decay" in kinds and not logit else 0.5,
            learn_decay=logit,
            input_scale=float(node.input_scale),
            v_threshold=float(node.thresholds[0]),
            threshold_step=spaced or 1.0,
            thresholds=None if spaced else [float(theta) for theta in node.thresholds],
            v_reset=float(node.v_reset),
            reset_mode="soft" if undecayed else node.reset,
            reset_step=stored(node.reset_step, node.learned_reset_step),
            # Of another reset it decides what the state shows: the host's custom.
            reset_delay=delayed and (undecayed or (node.reset != "soft" and self.delays and detached)),
            retake=undecayed and not delayed,
            detach_reset=detached,
            surrogate=trained_with(node),
            charge=charges,
            tau=rate if "tau" in kinds else None,
            w=rate if "w" in kinds else None,
            channel_dim=channel_dims(node.channel_dim),
        )
        # What was learned may have left the range of a start value, and comes back to the bit.
        if logit:
            held.decay_logit = rate
        if np.size(node.first_threshold):  # in its own precision, in which the others are added to it
            held.v_threshold = first if node.learned_threshold else torch.tensor(node.first_threshold)
        return self.wrap(held, node)

    def pmsn(self, node: Any) -> nn.Module:
        channels, modes = node.A_imag.shape
        bursts: dict[str, Any] = {word or "none": value for value, word in BURSTS.items()}
        held = PMSN(
            channels=channels,
            compartments=modes * (2 if node.tied else 1) + 1,
            channel_dim=channel_dims(node.channel_dim),
            v_threshold=float(node.v_threshold),
            surrogate=trained_with(node),
            init=node.init,
            reset_mode=node.reset_mode,
            burst=bursts[node.burst],
            coeff=float(node.coeff),
            residual=node.residual,
            tied=bool(node.tied),
            context=node.context,
            dt_scale=float(node.dt_scale),
        )
        filled(held, **{name: getattr(node, name) for name in PARAMETERS})
        return self.wrap(held, node)

    def parallel_if(self, node: Any) -> nn.Module:
        bursts: dict[str, Any] = {word or "none": value for value, word in BURSTS.items()}
        held = ParallelIF(float(node.v_threshold), trained_with(node), bursts[node.burst])
        return self.wrap(held, node)


def stored(array: Any, learned: int) -> Any:
    """A number, a tensor where it differs between neurons, or a parameter where it is learned (1: of no axis); None
    for an empty array.
    """
    values = torch.tensor(np.atleast_1d(array))
    if values.numel() == 0:
        return None
    if learned:
        return nn.Parameter(values.reshape(()) if learned == 1 else values)
    return float(values) if values.numel() == 1 else values


def one_or_all(array: Any, wide: Any) -> float | torch.Tensor:
    """The one value of an array, or all of them as a tensor."""
    array = np.asarray(array)
    return float(array.flat[0]) if (array == array.flat[0]).all() else torch.tensor(array.astype(wide))


def trained_with(node: Any) -> Surrogate | None:
    """The surrogate of a node; None is the neuron's default."""
    return None if node.surrogate == "default" else Surrogate(node.surrogate, float(node.width))
