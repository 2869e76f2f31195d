"""Nodes of NIR to modules of a framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..hosts import load
from ..neurons import MSF, Neuron
from ..neurons.base import channel_shape
from ..words import install
from .builder import Builder


def builder_for(host: str, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> Builder:
    """What builds for a key of ``hosts.HOSTS``."""
    return BUILDERS.get(host, ToHost)(host, dt, dtype, options)


class ToHost(Builder):
    """Layers of torch, and a host's ``NODES`` around our neurons."""

    layers: Any = nn

    def __init__(self, host: str, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(dt, dtype, options)
        self.host = host

    def node_for(self, held: Neuron) -> Any:
        """The class of nodes that holds such a neuron."""
        name = type(held).__name__
        kind = load(self.host).NODES.get(name.lower())
        if not hasattr(kind, "from_neuron"):
            raise ValueError(
                f"{self.host} has no node for {name}: NODES[{name.lower()!r}] of its host is a class with "
                "from_neuron(neuron)"
            )
        return kind

    def wrap(self, held: Neuron, node: Any) -> Any:
        if node is not None and np.any(np.asarray(node.graded_spikes_factor) != 1):
            raise ValueError(f"{self.host}'s nodes have no graded_spikes_factor: import it into snnTorch")
        return self.hold(held)

    def hold(self, held: Neuron, **words: Any) -> Any:
        """A node around ``held``, with the options of the call and ``words``."""
        options = {name: value for name, value in self.options.items() if name != "backend"}
        held.backend = self.options.get("backend", "auto")
        return self.node_for(held).from_neuron(held, **words, **options)


class ToSnnTorch(ToHost):
    """Layers of torch, neurons of snnTorch."""

    delays = True

    def __init__(self, host: str, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(host, dt, dtype, {"init_hidden": True, **options})
        self.leading = 2 if options.get("sequence") else 1

    def node_for(self, held: Neuron) -> Any:
        from .. import snntorch

        return getattr(snntorch, type(held).__name__)

    def wrap(self, held: Neuron, node: Any) -> Any:
        reset = getattr(node, "reset", "hard")
        if isinstance(held, MSF):
            for wrong, why in (
                (held.charge != ("decay", "decay"), f"charge={held.charge[1]!r}"),
                (
                    reset == "soft",
                    "reset that subtracts before the decay: its own takes spikes off undecayed",
                ),
                (reset not in ("hard", "soft", "subtract", "none"), f"reset {reset!r}"),
                (held.v_reset != 0, f"v_reset={held.v_reset:g}"),
            ):
                if wrong:
                    raise ValueError(f"snnTorch's MSF has no {why}. Import it into SpikingJelly")
        return self.hold(held, graded_spikes_factor=1.0 if node is None else _factor(node))


class ToSpikingJelly(ToHost):
    """Layers and neurons of SpikingJelly."""

    def __init__(self, host: str, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(host, dt, dtype, options)
        try:
            from spikingjelly.activation_based import layer
        except ImportError as error:
            raise ImportError(f"{error}: {install('spikingjelly')}") from error
        self.layers = layer

    def finish(self, net: nn.Module) -> None:
        from spikingjelly.activation_based import functional

        functional.set_step_mode(net, self.options.get("step_mode", "s"))

    def node_for(self, held: Neuron) -> Any:
        from .. import spikingjelly

        return getattr(spikingjelly, f"{type(held).__name__}Node")

    def wrap(self, held: Neuron, node: Any) -> Any:
        reset = getattr(node, "reset", "hard")
        if isinstance(held, MSF) and reset not in ("hard", "soft"):
            which = {
                "none": ": its v_reset is a number or None. Import it into snnTorch, reset_mechanism='none' there",
                "subtract": ": its v_reset=None subtracts before the decay, this one takes spikes off undecayed. "
                "Import it into snnTorch, reset_mechanism='subtract' there",
            }
            raise ValueError(f"SpikingJelly has no reset {reset!r}{which.get(reset, '')}")
        if isinstance(held, MSF) and isinstance(held.v_threshold, torch.Tensor) and node is not None:
            held.v_threshold = _against_step(held.v_threshold, held.channel_dim, node.shape)
        return super().wrap(held, node)


BUILDERS: dict[str, type[ToHost]] = {"snntorch": ToSnnTorch, "spikingjelly": ToSpikingJelly}


def _factor(node: Any) -> torch.Tensor:
    """What each spike is worth: one number, or one for each neuron of the last axes."""
    factor = torch.tensor(np.atleast_1d(node.graded_spikes_factor))
    return factor.reshape(()) if factor.numel() == 1 else factor


def _against_step(theta: torch.Tensor, channel_dim: Any, shape: Any) -> torch.Tensor:
    """Thresholds of each channel in the shape that broadcasts against one step, which SpikingJelly's node demands."""
    if theta.dim() != 1 or len(theta) == 1:
        return theta
    laid_out = theta.detach().reshape(channel_shape(channel_dim, torch.empty(1, *shape)))
    return nn.Parameter(laid_out) if isinstance(theta, nn.Parameter) else laid_out
