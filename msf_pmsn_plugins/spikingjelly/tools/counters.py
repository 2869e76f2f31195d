"""SpikingJelly's operation counters and energy profiler, right for integer spikes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import energy
from ..base import SpikingJellyNode
from ..nodes import MSFNode, PMSNNode
from .parts import require

__all__ = ["OpCounters", "count_rules", "op_counters", "simple_energy", "state_rules"]

aten = torch.ops.aten

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
    :data:`msf_pmsn_plugins.energy.UPDATES`. A node that runs step by step (a surrogate that no kernel takes, such as
    ``Soft``; a PMSN in single-step mode) is counted by its operations, as SpikingJelly counts any node.
    """
    ours = {type(m) for m in net.modules() if isinstance(m, SpikingJellyNode)}
    return dict.fromkeys(ours, state_rule)


_SEQUENCES = {torch.ops.msf_pmsn_plugins.msf.default, torch.ops.msf_pmsn_plugins.pmsn.default}


def state_rule(
    node: SpikingJellyNode, op: Any, args: Any, kwargs: Any, out: Any, states: Any
) -> dict[str, int] | None:
    """The rule of :func:`state_rules` for one operation inside ``node``; None leaves it to the counter."""
    stepwise = not isinstance(node, MSFNode) and (node.step_mode == "s" or node.has_margin)
    if stepwise or not node.neuron._has_kernel(node.neuron.surrogate):
        return None
    if op not in _SEQUENCES:
        return {}
    if getattr(node.neuron, "context", "local") == "global" and args[2].shape[-1] > 0:
        return {}  # its step response, which it runs first
    x_seq = args[0]
    if isinstance(node, PMSNNode) and x_seq.shape[2] != node.channels:
        return {}  # what reads the hidden state out, for store_z_seq
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
    host = require("op_counter", _INSTEAD)
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
    host = require("op_counter.simple_energy", _INSTEAD)
    call = require("op_counter.base", _INSTEAD).call_model
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
