"""SpikingJelly's own utilities, made right for integer spikes: counters, memory optimisation, deployment, exchange.

The nodes themselves are in :mod:`msf_pmsn_plugins.spikingjelly`. What needs SpikingJelly 2.0.0 says so on 0.0.0.0.14,
and names what does the same there. Nothing here changes SpikingJelly itself.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import energy
from .spikingjelly import MSFNode, SpikingJellyNode, as_stock, site_charge
from .surrogate import Surrogate

__all__ = [
    "CountCompressor",
    "OpCounters",
    "binary_input",
    "count_rules",
    "keep_counts",
    "op_counters",
    "optimize_memory",
    "simple_energy",
    "state_rules",
    "to_stock",
]

aten = torch.ops.aten


def _host(part: str, instead: str) -> Any:
    """A part of SpikingJelly 2.0.0, or an ImportError that names what to do without it."""
    name = f"spikingjelly.activation_based.{part}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        version = importlib.metadata.version("spikingjelly")
        raise ImportError(
            f"SpikingJelly {version} has no {name}, which 2.0.0 has; instead: {instead}"
        ) from error


# Operation counters ---------------------------------------------------------------------------------------------------

_INSTEAD = "msf_pmsn_plugins.energy.counting(net), which needs no framework"
_WHOLE = [
    getattr(packet, overload)
    for packet in (aten.linear, aten.matmul, aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose2d)
    for overload in packet.overloads()
]


def count_rules(net: nn.Module | None = None) -> dict[str, dict[Any, Any]]:
    """Rules for SpikingJelly's counters that count a spike of k as k accumulates, where theirs see multiplications.

    ``SynOpCounter(extra_rules=count_rules(net)["synop"])``, and so for ``"ac"`` (:class:`ACCounter`) and ``"mac"``
    (:class:`MACCounter`). They are the rules of :data:`msf_pmsn_plugins.energy.RULES`.

    Args:
        net: whose parameters are never taken for spikes, even if they hold integers.
    """
    measure = energy.measure(net)

    def count(field: str, op: Any, args: Any, kwargs: Any, out: Any) -> int:
        result = measure(op, args, kwargs, out)
        assert result is not None
        return getattr(result[0], field)

    def added(args: Any, kwargs: Any, out: Tensor) -> int:
        operands = [energy.spikes_of(x) for x in args[:2] if isinstance(x, Tensor)]
        if len(operands) == 2 and all(s is not None for s in operands):
            return round(sum(float(s.counts.sum()) for s in operands if s is not None))
        return out.numel()

    def whole(op: Any, *_: Any) -> int:
        raise energy.EnergyError(
            f"{op} reached the counter undivided, which SpikingJelly's counters would leave out: run the net under "
            "torch.no_grad() in place of torch.inference_mode()"
        )

    refused = {op: partial(whole, op) for op in _WHOLE}
    accumulates = {op: partial(count, "accumulates", op) for op in energy.RULES} | refused
    return {
        "synop": accumulates,
        "ac": {**accumulates, aten.add.Tensor: added, aten.add_.Tensor: added},
        "mac": {op: partial(count, "macs", op) for op in energy.RULES} | refused,
    }


def state_rules(net: nn.Module) -> dict[type[nn.Module], Callable[..., dict[str, int] | None]]:
    """``extra_state_rules`` of :class:`NeuronStateCounter` for our nodes in ``net``, by the papers' formulas.

    A node runs as one operation, in which the counter sees nothing: the rule gives it the updates of
    :data:`msf_pmsn_plugins.energy.UPDATES`. A node that runs step by step (a callable as surrogate, a PMSN in
    single-step mode or storing its states) is counted by its operations, as SpikingJelly counts any node.
    """
    ours = {type(m) for m in net.modules() if isinstance(m, SpikingJellyNode)}
    return dict.fromkeys(ours, _state_rule)


_SEQUENCES = {torch.ops.msf_pmsn_plugins.msf.default, torch.ops.msf_pmsn_plugins.pmsn.default}


def _state_rule(
    node: SpikingJellyNode, op: Any, args: Any, kwargs: Any, out: Any, states: Any
) -> dict[str, int] | None:
    stepwise = not isinstance(node, MSFNode) and (node.step_mode == "s" or node._stored())
    if stepwise or node.has_margin or not isinstance(node.neuron.surrogate, Surrogate):
        return None
    if op not in _SEQUENCES:
        return {}
    if getattr(node.neuron, "context", "local") == "global" and args[2].shape[-1] > 0:
        return {}  # its step response, which it runs first
    x_seq = args[0]
    update = energy.neuron_update(node, len(x_seq))
    assert update is not None
    updates, word = x_seq.numel(), 8 if x_seq.dtype == torch.float64 else 4
    macs = round(update.macs * updates)
    return {
        "neuron_logical_steps": updates,
        "state_reads": round(update.reads * updates * word),
        "state_writes": round(update.writes * updates * word),
        "state_muls": macs,
        "state_adds": macs,
        "state_comps": updates * getattr(node, "D", 1),
        "state_select_ops": updates,
    }


@dataclass
class OpCounters:
    """SpikingJelly's counters, as :func:`op_counters` sets them up; each has ``get_total()`` and ``get_counts()``."""

    synop: Any
    ac: Any
    mac: Any
    state: Any
    mode: Any
    """The host's ``DispatchCounterMode``: ``mode.get_unsupported(counter)`` lists what a counter left out."""


@contextmanager
def op_counters(net: nn.Module, strict: bool = False) -> Iterator[OpCounters]:
    """SpikingJelly's SynOp, AC, MAC and neuron state counters over the block, right for integer spikes.

    ::

        with op_counters(net) as counters:
            net(x_seq)
        print(counters.synop.get_total(), counters.mac.get_total())

    What our nodes compute inside is left to ``state``; the nodes of SpikingJelly are counted as it counts them (its
    state counter misses all but the first of its own nodes in a net that was just reset: run it once before). The
    block runs without gradients.

    Args:
        net: the net that runs in the block.
        strict: SpikingJelly's: raise at an operation without a rule.

    Raises:
        ImportError: SpikingJelly 0.0.0.0.14 has no counters.
        EnergyError: an operation that the counters would miss, or a tensor without values.
    """
    host = _host("op_counter", _INSTEAD)
    rules, ours = count_rules(net), [SpikingJellyNode]
    synop, ac, mac = (
        kind(extra_rules=rules[name], extra_ignore_modules=ours)
        for name, kind in (("synop", host.SynOpCounter), ("ac", host.ACCounter), ("mac", host.MACCounter))
    )
    state = host.NeuronStateCounter(extra_state_rules=state_rules(net))
    # Without gradients: a state that a graph keeps alive would hide the next node's from the state counter.
    with torch.no_grad(), host.DispatchCounterMode([synop, ac, mac, state], strict=strict) as mode:
        yield OpCounters(synop, ac, mac, state, mode)


def simple_energy(net: nn.Module, inputs: Any, config: Any = None) -> Any:
    """SpikingJelly's ``estimate_simple_energy``, right for integer spikes: a count k is k accumulates.

    A weight is read once for each input that is not 0, whatever its count.

    Args:
        net: the net; it runs once, without gradients.
        inputs: one input, or a tuple, list or dict of arguments.
        config: SpikingJelly's ``SimpleEnergyConfig``.

    Returns:
        SpikingJelly's ``SimpleEnergyReport``.

    Raises:
        ImportError: SpikingJelly 0.0.0.0.14 has no energy profiler.
    """
    host = _host("op_counter.simple_energy", _INSTEAD)
    call = _host("op_counter.base", _INSTEAD).call_model
    profiler = host.SimpleEnergyProfiler(config=config)
    rules = count_rules(net)
    for name, counter in (
        ("synop", profiler.synop_counter),
        ("ac", profiler.ac_counter),
        ("mac", profiler.mac_counter),
    ):
        counter.rules.update(rules[name])
        counter.ignore_modules.append(SpikingJellyNode)
    memory = profiler.memory_counter
    memory.rules.update(
        {
            key: partial(_weight_reads, rule)
            for key, rule in memory.rules.items()
            if key[1].__module__[:5] == "torch"
        }
    )
    profiler.bind_model(net)
    with profiler, torch.no_grad():
        call(net, inputs)
    return profiler.get_report()


def _weight_reads(rule: Callable[..., int], module: nn.Module, inputs: Any, kwargs: Any, out: Any) -> int:
    x = inputs[0] if inputs else kwargs.pop(next(iter(kwargs)))
    if energy.spikes_of(x) is not None:
        x = (x != 0).to(x.dtype)
    return rule(module, (x, *inputs[1:]), kwargs, out)


# Memory optimisation --------------------------------------------------------------------------------------------------


class CountCompressor:
    """A compressor for ``memopt`` that loses nothing: bits for 0 and 1, bytes for counts up to 255, all else as it is.

    SpikingJelly chooses its compressor once, by one example, and the bits it then takes lose every count above 1.
    This one looks at each tensor (on a GPU that waits for it). Only the sign of a zero may differ.
    """

    def compress(self, x: Tensor) -> object:
        """The tensor in the smallest form that gives it back."""
        small = x.to(torch.uint8)
        if not torch.equal(small.to(x.dtype), x):
            return x.detach()
        if small.numel() and int(small.max()) > 1:
            return small, x.dtype
        bits = _host("memopt", "torch.utils.checkpoint").BitSpikeCompressor()
        return bits, bits.compress(x)

    def decompress(self, packed: Any) -> Tensor:
        """What was compressed."""
        if isinstance(packed, Tensor):
            return packed
        first, second = packed
        return first.to(second) if isinstance(first, Tensor) else first.decompress(second)


def keep_counts(net: nn.Module) -> list[str]:
    """Replace the compressors that SpikingJelly's ``memopt`` put into ``net`` by one that loses nothing, in place.

    All of SpikingJelly's are replaced, for each loses something: bits, booleans and indices every count above 1, bytes
    those above 255 and what is no integer. A compressor of another package stays.

    Returns:
        The paths of the modules whose compressor was replaced.
    """
    replaced = []
    for path, module in net.named_modules():
        options = getattr(getattr(module, "checkpoint_fn", None), "keywords", {})
        compressor = options.get("compressor")
        if compressor is not None and type(compressor).__module__.startswith("spikingjelly."):
            options["compressor"] = CountCompressor()
            replaced.append(path)
    return replaced


def optimize_memory(
    model: nn.Module,
    targets: type | tuple[type, ...],
    example_forward: Callable[[nn.Module], object] | None = None,
    **options: Any,
) -> nn.Module:
    """SpikingJelly's ``memopt.optimize_memory``, with compressors that keep counts and real values.

    Theirs corrupts a net in which the example yields 0 and 1 only (or zeros), and a later input something else.

    Args:
        model, targets, example_forward, options: as in SpikingJelly.

    Raises:
        ImportError: SpikingJelly 0.0.0.0.14 has no ``memopt``.
    """
    memopt = _host("memopt", "torch.utils.checkpoint.checkpoint on blocks that are reset before each batch")
    model = memopt.optimize_memory(model, targets, example_forward, **options)
    keep_counts(model)
    return model


# Deployment and exchange ----------------------------------------------------------------------------------------------


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
    host = _host(
        "layer.misc", "msf_pmsn_plugins.deploy.to_binary(net, example_input), which rewrites whole nets"
    )
    weighted = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
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
        stock, _ = as_stock(node)
    except ValueError as error:
        return None, str(error)
    stock.train(node.training)
    charge, power_of_two = node.neuron.charge, math.frexp(node.tau)[0] == 0.5 or math.isinf(node.tau)
    if charge[0] == "decay":
        if node.v_reset not in (0.0, None):
            return None, f"with charge='decay' it leaks to 0 V, they leak to v_reset={node.v_reset}"
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
