"""Nodes of NIR to modules of torch: what both frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..neurons.pmsn import BURSTS, PARAMETERS
from . import nodes
from .libraries import nir
from .numbers import channel_dims, filled, pair, uniform, wide_type


class Builder:
    """Nodes of NIR to modules of torch."""

    layers: Any
    leading = 1

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

    def msf(self, node: Any) -> nn.Module:
        raise NotImplementedError

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        """The framework's neuron ``name`` with ``settings`` in our own words."""
        raise NotImplementedError

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
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
        theta, v_reset = uniform("v_threshold", node.v_threshold), uniform("v_reset", node.v_reset)
        r = uniform("r", node.r)
        if hasattr(node, "tau"):
            tau, leak = uniform("tau", node.tau), uniform("v_leak", node.v_leak)
            if leak != v_reset:
                raise ValueError(
                    f"MSF leaks to where it resets, this node leaks to {leak:g} and resets to {v_reset:g}"
                )
            if not tau >= self.dt:
                raise ValueError(
                    f"tau={tau:g} s is shorter than the time step dt={self.dt:g} s: no decay in [0, 1]"
                )
            decay, scale = 1.0 - self.dt / tau, r * self.dt / tau
        else:
            decay, scale = 1.0, r * self.dt
        scale = 1.0 if wide(scale) == 1 or abs(scale - 1) <= 4 * np.finfo(np.float64).eps else scale
        above = float(np.nextafter(wide(theta), wide(np.inf)))
        return self.integrator(decay, scale, above, v_reset)

    def pmsn(self, node: Any) -> nn.Module:
        channels, modes = node.A_imag.shape
        bursts = {word or "none": value for value, word in BURSTS.items()}
        module = self.make(
            "PMSN",
            node,
            channels=channels,
            compartments=modes * (2 if node.tied else 1) + 1,
            channel_dim=channel_dims(node.channel_dim),
            init=node.init,
            reset_mode=node.reset_mode,
            burst=bursts[node.burst],
            coeff=float(node.coeff),
            residual=node.residual,
            tied=bool(node.tied),
            context=node.context,
            dt_scale=float(node.dt_scale),
        )
        filled(module.neuron, **{name: getattr(node, name) for name in PARAMETERS})
        return module

    def parallel_if(self, node: Any) -> nn.Module:
        bursts = {word or "none": value for value, word in BURSTS.items()}
        return self.make("ParallelIF", node, burst=bursts[node.burst])
