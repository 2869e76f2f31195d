"""Our nodes for what knows only SpikingJelly's own: binary layers in front of weights, stock nodes for exporters."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from ..base import SpikingJellyNode
from ..host import as_stock, site_charge
from ..nodes import MSFNode
from .parts import require

__all__ = ["binary_input", "to_stock"]


class _Bias(nn.Module):
    def __init__(self, bias: Tensor, spatial: int) -> None:
        super().__init__()
        self.bias, self.spatial = nn.Parameter(bias.detach().clone()), spatial

    def forward(self, y: Tensor) -> Tensor:
        return y + self.bias.reshape(-1, *(1,) * self.spatial)


def binary_input(layer: nn.Module, D: int) -> nn.Sequential:
    """A weight layer in multi-step mode that takes counts 0..D: as they are in training, as 0 and 1 in evaluation.

    ``SpikeCountToBinary(D)``, the layer without its bias, ``TemporalBinSum(D)``, then the bias, once. In evaluation
    every step becomes D sub-steps, whose outputs are summed: the same up to the rounding of that sum, or exactly with
    weights from :func:`msf_pmsn_plugins.deploy.round_weights`.

    Args:
        layer: SpikingJelly's ``layer.Linear``, ``layer.Conv2d`` .., or a ``nn.Linear``; a copy is taken.
        D: the largest count.

    Raises:
        ImportError: SpikingJelly 0.0.0.0.14 has no such layers; ``deploy.to_binary`` rewrites whole nets on both.
        TypeError: not a weight layer, or one that would take the time axis for another.
    """
    host = require(
        "layer.misc", "msf_pmsn_plugins.deploy.to_binary(net, example_input), which rewrites whole nets"
    )
    weighted = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
    if not weighted or (not isinstance(layer, nn.Linear) and not hasattr(layer, "step_mode")):
        raise TypeError(
            f"binary_input takes a weight layer of spikingjelly.activation_based.layer, got {type(layer).__name__}"
        )
    bare: Any = copy.deepcopy(layer)
    bias, bare.bias = bare.bias, None
    if hasattr(bare, "step_mode"):
        bare.step_mode = "m"
    parts = [host.SpikeCountToBinary(D), bare, host.TemporalBinSum(D)]
    if bias is not None:
        parts.append(_Bias(bias, 0 if isinstance(layer, nn.Linear) else bare.weight.dim() - 2))
    return nn.Sequential(*parts).train(layer.training)


EXCHANGES = ("lava", "lynxi")


def to_stock(net: nn.Module, exchange: str | None = None, exact: bool = True) -> nn.Module:
    """A copy of ``net`` with SpikingJelly's own IF and LIF nodes in place of ours, for exporters that know only those.

    Only an MSF with D = 1 is one of them. With ``exact`` outputs and gradients are the same to the bit; else the charge
    may round differently, as ``(1 - 1/tau) v`` and ``v - v/tau`` do.

    Args:
        net: a net without the state of a running sequence; reset it first.
        exchange: ``"lava"`` (``lava_exchange``) or ``"lynxi"`` (``lynxi_exchange``): also refuse what that one cannot
            take over, or takes over wrongly. Lava itself computes in fixed point and fires above its threshold, not at
            it, with SpikingJelly's own nodes too.
        exact: refuse nodes that are the same up to rounding only.

    Raises:
        ValueError: a node that no stock node computes, each with the reason.
    """
    if exchange is not None and exchange not in EXCHANGES:
        raise ValueError(f"unknown exchange {exchange!r}; known: {', '.join(map(repr, EXCHANGES))}, or None")
    reasons, made = [], {}
    paths = [(p, m) for p, m in net.named_modules(remove_duplicate=False) if isinstance(m, SpikingJellyNode)]
    for path, node in paths:
        if node not in made:
            made[node], reason = _stock(node, exchange, exact)
            if reason:
                reasons.append(f"  {path or 'the node'}: {reason}")
    if reasons:
        raise ValueError("no stock node computes what these do:\n" + "\n".join(reasons))
    if net in made:
        return made[net]
    # The memo puts the new nodes where the copy would hold copies of ours, shared ones included.
    return copy.deepcopy(net, {id(node): stock for node, stock in made.items()})


def _stock(node: SpikingJellyNode, exchange: str | None, exact: bool) -> tuple[Any, str]:
    if not isinstance(node, MSFNode):
        return None, f"{type(node).__name__} is no leaky integrator with one threshold"
    if node.neuron.D > 1:
        return None, (
            f"it emits counts 0..{node.neuron.D}, a stock node one spike: deploy it on binary spikes with "
            "msf_pmsn_plugins.deploy.to_binary(net, example_input)"
        )
    if node.has_margin:
        return None, "its v_threshold is a tensor: set a number"
    if node.neuron.decay_logit is not None:
        return None, "its decay is learned: build one with tau=float(node.tau)"
    try:
        stock, lost = as_stock(node)
    except ValueError as error:
        return None, str(error)
    if lost:
        return None, "; ".join(lost)
    stock.train(node.training)
    charge, power_of_two = node.neuron.charge, math.frexp(node.tau)[0] == 0.5 or math.isinf(node.tau)
    if charge[0] == "decay":
        if exact and (node.decay_input or not power_of_two):
            return None, (
                f"charge='decay' rounds differently from theirs at tau={node.tau:.6g}"
                f"{', decay_input=True' if node.decay_input else ''}: build it with charge='lif', or pass exact=False"
            )
    elif exact:
        theirs = site_charge(stock)["charge"]
        if (theirs if isinstance(theirs, tuple) else (theirs, theirs)) != charge:
            return None, f"charge={charge[0]!r} is not the order of operations of {type(stock).__name__} here"
    kind = type(stock).__name__
    if exchange is not None and kind not in ("IFNode", "LIFNode"):
        return None, f"{exchange}_exchange takes IFNode and LIFNode, not {kind}"
    if exchange == "lava" and (node.v_reset != 0.0 or getattr(stock, "decay_input", False)):
        decays = getattr(stock, "decay_input", False)
        return (
            None,
            f"lava_exchange takes v_reset=0, decay_input=False; this has {node.v_reset}, {decays}",
        )
    if exchange == "lynxi" and node.v_reset not in (0.0, None):
        return None, f"lynxi_exchange computes another leak for v_reset={node.v_reset}: use 0 or None"
    return stock, ""
