"""Nodes of NIR to modules of either framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..surrogate import Surrogate
from .builder import Builder
from .numbers import channel_dims, tau_in_steps, wide_type


class ToSnnTorch(Builder):
    """Layers of torch, neurons of snnTorch."""

    layers = nn

    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(dt, dtype, {"init_hidden": True, **options})
        self.leading = 2 if options.get("sequence") else 1

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        from .. import snntorch as nodes_of_host

        kind = getattr(nodes_of_host, name)
        if node is not None:
            settings |= {
                "spike_grad": trained_with(node),
                "graded_spikes_factor": _factor(node),
            }
            if name != "MSF":
                settings["threshold"] = float(node.v_threshold)
        return kind(**settings, **self.options)

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
        if v_reset != 0:
            raise ValueError(
                f"snnTorch resets to zero, this node to {v_reset:g}: import it into SpikingJelly"
            )
        module = self.make("MSF", None, beta=decay, threshold=theta, D=1)
        module.neuron.input_scale = scale
        return module

    def msf(self, node: Any) -> nn.Module:
        for wrong, why in (
            (node.charge != "decay" or node.train_charge != "decay", f"charge={node.charge!r}"),
            (node.reset == "soft", "a reset that subtracts before the decay (snnTorch's does after it)"),
            (float(node.v_reset) != 0, f"v_reset={float(node.v_reset):g}"),
        ):
            if wrong:
                raise ValueError(f"snnTorch's MSF has no {why}: import it into SpikingJelly")
        words = {"hard": "zero", "subtract": "subtract", "none": "none"}
        beta = torch.tensor(node.rate if node.learned == 2 else node.rate[0])
        module = self.make(
            "MSF",
            node,
            beta=beta.sigmoid() if node.learned else float(node.rate[0]),
            learn_beta=bool(node.learned),
            reset_mechanism=words[node.reset],
            reset_delay=bool(node.reset_delay),
            channel_dim=channel_dims(node.channel_dim),
            **thresholds_of(node, "threshold"),
        )
        return finish_msf(module, node)


class ToSpikingJelly(Builder):
    """Layers and neurons of SpikingJelly."""

    def __init__(self, dt: float, dtype: torch.dtype, options: dict[str, Any]) -> None:
        super().__init__(dt, dtype, options)
        try:
            from spikingjelly.activation_based import layer
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'msf-pmsn-plugins[spikingjelly]'") from error
        self.layers = layer

    def finish(self, net: nn.Module) -> None:
        from spikingjelly.activation_based import functional

        functional.set_step_mode(net, self.options.get("step_mode", "s"))

    def make(self, name: str, node: Any, **settings: Any) -> Any:
        from .. import spikingjelly as nodes_of_host

        if node is not None:
            if np.any(np.asarray(node.graded_spikes_factor) != 1):
                raise ValueError("SpikingJelly's nodes have no graded_spikes_factor: import it into snnTorch")
            settings["surrogate_function"] = trained_with(node)
            if name != "MSF":
                settings["v_threshold"] = float(node.v_threshold)
        return getattr(nodes_of_host, f"{name}Node")(**settings, **self.options)

    def integrator(self, decay: float, scale: float, theta: float, v_reset: float) -> nn.Module:
        tau = tau_in_steps(decay, wide_type(self.dtype))
        return self.make(
            "MSF", None, D=1, tau=tau, v_threshold=theta, v_reset=v_reset, **self._scaled(scale, tau)
        )

    def _scaled(self, scale: float, tau: float) -> dict[str, bool]:
        wide = wide_type(self.dtype)
        if scale != 1 and wide(scale) != wide(1 / tau):
            raise ValueError(
                f"SpikingJelly scales its input by 1 or 1/tau = {1 / tau:g}, this node by {scale:g}"
            )
        return {"decay_input": scale != 1}

    def msf(self, node: Any) -> nn.Module:
        if node.reset not in ("hard", "soft"):
            raise ValueError(
                f"SpikingJelly has no reset {node.reset!r}: 'subtract' is snnTorch's, after the decay; import it there"
            )
        rate: Any = float(node.rate[0])
        settings: dict[str, Any] = {"charge": (node.train_charge, node.charge)}
        if "plif" in node.charge:
            settings["w"] = torch.tensor(node.rate[0])
        elif node.learned:
            logit = torch.tensor(node.rate if node.learned == 2 else node.rate[0])
            settings |= {"charge": "decay", "learn_tau": True, "tau": 1 / (1 - logit.sigmoid())}
        elif node.charge == "decay":
            tau = tau_in_steps(rate, wide_type(self.dtype))
            settings |= {"charge": "decay", "tau": tau, **self._scaled(float(node.input_scale), tau)}
        elif "lif" in node.charge:
            settings["tau"] = rate
        module = self.make(
            "MSF",
            node,
            v_reset=None if node.reset == "soft" else float(node.v_reset),
            detach_reset=bool(node.detach_reset),
            channel_dim=channel_dims(node.channel_dim),
            **thresholds_of(node, "v_threshold"),
            **settings,
        )
        return finish_msf(module, node)


def thresholds_of(node: Any, first: str) -> dict[str, Any]:
    """The thresholds of a node as arguments; ``first`` is the framework's word for the first of them."""
    values = [float(theta) for theta in node.thresholds]
    if not node.threshold_step:
        return {"thresholds": values}
    return {"D": len(values), first: values[0], "threshold_step": float(node.threshold_step)}


def finish_msf(module: Any, node: Any) -> Any:
    """What the constructors round or lack."""
    held = module.neuron
    if node.learned:  # to the bit
        held.decay_logit = nn.Parameter(torch.tensor(node.rate).reshape(held.decay_logit.shape))
    if hasattr(module, "reset_delay"):
        held.input_scale, held.detach_reset = float(node.input_scale), bool(node.detach_reset)
    return module


def _factor(node: Any) -> float | torch.Tensor:
    """What each spike is worth: one number, or one for each neuron of the last axes."""
    factor = np.atleast_1d(node.graded_spikes_factor)
    return float(factor[0]) if factor.size == 1 else torch.tensor(factor)


def trained_with(node: Any) -> Surrogate | None:
    """The surrogate of a node; None is the framework's default."""
    return None if node.surrogate == "default" else Surrogate(node.surrogate, float(node.width))
