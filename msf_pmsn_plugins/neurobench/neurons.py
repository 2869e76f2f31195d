"""What neurons do in NeuroBench's terms: how many change their membrane, and what that costs.

A membrane update is a neuron at a step whose state is another one afterwards; at the first step after rest every neuron
counts, as in NeuroBench. An operation is an addition, subtraction, multiplication, division or floor of the update
equation, with its constants folded; comparisons and the surrogate are free. By this rule NeuroBench's Leaky has 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..charges import CHARGES
from ..energy.updates import BASES
from ..lengths import valid_steps
from ..neurons import Neuron
from ..neurons.base import State
from ..neurons.nodes import held_by, takes_sequences
from .library import NeuronHook, neuron_ops_reset_operations

__all__ = ["OPERATIONS", "Cost", "Watch", "is_neuron", "operations"]

Cost = float | Callable[[Any], float]
FOLDED = re.compile(r"\(1 - (1/tau|sigmoid\(w\))\)|sigmoid\(w\)")  # constants of a charge


def _charge(name: str, v_reset: float, scale: float = 1.0) -> int:
    """Operations of a charge, by its formula."""
    formula = FOLDED.sub("k", CHARGES[name].formula)
    idle = len(re.findall(r"\br\b", formula)) if v_reset == 0 else 0
    return len(re.findall(r"[-+*/]", formula)) - idle - ("b*x" in formula and scale == 1)


def _reset(mode: str, v_reset: float) -> int:
    """Operations of a reset: ``m - f*m``, ``m - f*(m - r)``, ``m - q*s``."""
    return {"hard": 2 + (v_reset != 0), "soft": 2, "none": 0}[mode]


def _msf(neuron: Any) -> int:
    r = neuron.v_reset if neuron.reset_mode == "hard" else 0.0
    return (
        _charge(neuron.charge[-1], r, neuron.input_scale)
        + _reset(neuron.reset_mode, neuron.v_reset)
        + neuron.D
        - 1
    )


def _soma(neuron: Any, mode: str) -> int:
    """``v = r + q/theta``, ``r = v - floor(v)``."""
    return {"none": 0, "cumulative": 1}.get(mode, 3) + (neuron.v_threshold != 1)


def _pmsn(neuron: Any) -> int:
    # z + (e z + x) of complex z and e: 9 a mode; Re(w z): 3; their sum; + D x: 2
    return 12 * neuron.modes + neuron.modes - 1 + 2 + _soma(neuron, neuron.reset_mode)


def _msn(neuron: Any) -> int:
    m = neuron.compartments - 1
    soma = 2 + (3 if m else 1) + (3 if neuron.reset_mode == "floor" else 2)
    return 2 * m + soma + m * (2 * m - 1) + 2 * m + (2 if neuron.reset_feedback else 0)


def _spikingjelly(charge: str) -> Callable[[Any], int]:
    def cost(node: Any) -> int:
        mode, r = ("soft", 0.0) if node.v_reset is None else ("hard", node.v_reset)
        name = charge if charge == "if" else f"{charge}{'_decay_input' if node.decay_input else ''}"
        return _charge(name, r) + _reset(mode, r)

    return cost


def _snntorch(name: str) -> Callable[[Any], int]:
    return lambda node: neuron_ops_reset_operations[name][node.reset_mechanism]


OPERATIONS: dict[str, Cost] = {
    "MSF": _msf,
    "PMSN": _pmsn,
    "MSN": _msn,
    "ParallelIF": lambda neuron: _soma(neuron, "floor"),
    "IFNode": _spikingjelly("if"),
    "LIFNode": _spikingjelly("lif"),
    "ParametricLIFNode": _spikingjelly("plif"),
    **{name: _snntorch(name) for name in neuron_ops_reset_operations},  # NeuroBench's own figures
}


def is_neuron(module: nn.Module) -> bool:
    """Whether ``module`` is a neuron or node: ours, SpikingJelly's or snnTorch's."""
    return any(cls.__name__ in BASES for cls in type(module).__mro__)


def operations(module: nn.Module, more: Mapping[str, Cost] | None = None) -> float:
    """Operations of one update of one neuron of ``module``; ``more`` adds to :data:`OPERATIONS`, by class name.

    Raises:
        ValueError: a neuron that neither knows.
    """
    known = {**OPERATIONS, **(more or {})}
    held = held_by(module) or module
    name = type(module).__name__
    remedy = f"give operations={{{name!r}: ..}}"
    for cls in (*type(module).__mro__, *type(held).__mro__):
        cost = known.get(cls.__name__)
        if cost is not None:
            try:
                return cost if isinstance(cost, int | float) else cost(held)
            except KeyError as error:
                raise ValueError(f"NeuroBench has no figure for reset {error} of {name}: {remedy}") from error
    raise ValueError(f"it is not known how many operations an update of {name} takes: {remedy}")


class Watch(NeuronHook):
    """What one neuron or activation layer gave, and how often its membranes changed, until :meth:`reset`.

    Ours are run again, step by step, when somebody asks for their updates: a sequence shows its last state alone.
    """

    def __init__(self, layer: Any, path: str, cost: float) -> None:
        super().__init__(None, path)
        self.layer, self.cost = layer, cost
        self.held = held_by(layer)
        self.keeps = self.held is None and hasattr(layer, "store_v_seq") and hasattr(layer, "v")
        self.stored = getattr(layer, "store_v_seq", False)
        if self.keeps:
            layer.store_v_seq = True
        self.before: Any = None
        self.waiting: list[tuple[Tensor, State | None, Tensor | None]] = []
        self.counted = self.dense = 0
        self.hook_pre = layer.register_forward_pre_hook(self.enter, with_kwargs=True)
        self.hook = layer.register_forward_hook(self.leave, with_kwargs=True)

    @property
    def updates(self) -> int:
        """Membrane updates since the last reset."""
        while self.waiting and self.held is not None:
            self.counted += _updates(self.held, *self.waiting.pop())
        return self.counted

    def enter(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self.activation_inputs.append(args)
        if self.held is None:
            self.before = _membrane(layer)
            return
        x, *rest = args or (next(iter(kwargs.values())),)
        words = (
            ("lengths",)
            if hasattr(layer, "step_mode")
            else ("state" if layer is self.held else "mem", "lengths")
        )
        given = {**dict(zip(words, rest, strict=False)), **kwargs}
        x_seq = x if takes_sequences(layer) else x.unsqueeze(0)
        found = (given.get("lengths"), getattr(layer, "lengths", None), getattr(layer, "padding", None))
        lengths = next((value for value in found if value is not None), None)
        mask = None if lengths is None else valid_steps(x_seq, lengths)
        self.waiting.append((x_seq.detach(), _state(layer, x_seq, given), mask))

    def leave(self, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        self.activation_outputs.append(first)
        if self.held is not None:
            mask = self.waiting[-1][2]
            self.dense += first.numel() if mask is None else int(mask.sum()) * math.prod(first.shape[2:])
        elif is_neuron(layer):
            self.dense += first.numel()
            self.counted += self._changed(first)

    def _changed(self, out: Tensor) -> int:
        """Updates of a framework's neuron in the call that gave ``out``; all of them where it shows no membrane."""
        sequence = self.keeps and takes_sequences(self.layer)
        after = self.layer.v_seq if sequence else _membrane(self.layer)
        if not isinstance(after, Tensor):
            return out.numel()
        path = after if sequence else after.unsqueeze(0)
        before = (
            self.before if isinstance(self.before, Tensor) and self.before.shape == path.shape[1:] else None
        )
        first = path[0].numel() if before is None else int((path[0] != before).sum())
        return first + int((path[1:] != path[:-1]).sum())

    def reset(self) -> None:
        super().reset()
        self.waiting.clear()
        self.before, self.counted, self.dense = None, 0, 0

    def close(self) -> None:
        super().close()
        if self.keeps:
            self.layer.store_v_seq = self.stored


def _membrane(layer: Any) -> Tensor | None:
    """The membrane that a framework's neuron keeps, None where it is at rest or has none."""
    found = getattr(layer, "mem", None) if hasattr(layer, "mem") else getattr(layer, "v", None)
    return found if isinstance(found, Tensor) else None


def _state(layer: Any, x_seq: Tensor, given: Mapping[str, Any]) -> State | None:
    """The state from which a neuron of ours starts a call; None is rest."""
    if isinstance(layer, Neuron):
        return given.get("state")
    if hasattr(layer, "step_mode"):  # SpikingJelly's word
        return layer.carried
    passed = given.get("mem") is not None
    mem = given["mem"] if passed else layer.mem
    first = mem if isinstance(mem, Tensor) else mem[0]
    return None if first.shape == (0,) else layer._resume(x_seq[0], mem, passed)


@torch.no_grad()
def _updates(held: Neuron, x_seq: Tensor, state: State | None, mask: Tensor | None) -> int:
    """How many neurons change their state over the steps of ``x_seq`` [T, N, *]."""
    if getattr(held, "context", "local") == "global":  # it has no single steps: all of them, as at rest
        return x_seq.numel() if mask is None else int(mask.sum()) * math.prod(x_seq.shape[2:])
    total = 0
    for t, x in enumerate(x_seq.split(1)):
        live = None if mask is None else mask[t : t + 1]
        _, after, _ = held.sequence(x, state, lengths=live)
        if state is None:
            moved = torch.ones_like(x[0], dtype=torch.bool)
        else:
            moved = torch.zeros_like(x[0], dtype=torch.bool)
            for old, new in zip(state, after, strict=True):
                # a state may have axes of its own behind those of a step
                moved |= (old != new).reshape(*x.shape[1:], -1).any(-1)
        total += int((moved if live is None else moved[live[0]]).sum())
        state = after
    return total
