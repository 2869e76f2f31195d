"""What is drawn: spikes and membranes of a neuron of ours or of a framework, alone or as a layer of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons import MSF, Neuron
from ..neurons.nodes import held_by, is_node, takes_sequences

# The frameworks' own spiking neurons, by the names of their base classes: neither framework is imported here.
SPIKING_BASES = {"BaseNode", "SimpleBaseNode", "PSN", "MaskedPSN", "SlidingPSN", "SpikingNeuron"}


@dataclass
class Recording:
    """What one layer did from rest."""

    module: nn.Module
    x_seq: Tensor
    """Its own input, [T, N, *]."""
    s_seq: Tensor
    """Spikes, in that shape."""
    m_seq: Tensor | None = None
    """Membranes before reset, volts; None if they were not asked for."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """All thresholds, volts."""
        return thresholds_of(self.module)


def is_spiking(module: Any) -> bool:
    """Whether it is a neuron of ours, bare or in a node, or one of a framework."""
    return held_by(module) is not None or any(cls.__name__ in SPIKING_BASES for cls in type(module).__mro__)


def kind_of(module: Any) -> str:
    """The neuron's class, without the framework's word for it."""
    return type(getattr(module, "neuron", module)).__name__


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The spiking neurons of a network by path; of a node and the neuron that it holds, the node."""
    found = {path: module for path, module in net.named_modules() if is_spiking(module)}
    held = [held_by(module) for module in found.values() if not isinstance(module, Neuron)]
    return {path: module for path, module in found.items() if all(module is not inner for inner in held)}


def record(source: Any, x_seq: Any, layer: str | None = None, membrane: bool = False) -> Recording:
    """Run ``source`` from rest, without gradients, and keep what one layer of it did; ``source`` stays as it is.

    Args:
        source: a neuron, a node, a framework's neuron, or a network of such.
        x_seq: its input, [T, N, *].
        layer: path of the layer in a network; None where there is only one.
        membrane: whether its membranes are wanted.

    Raises:
        TypeError: no spiking neuron in it, or one whose membrane cannot be seen.
        ValueError: no such layer, or several and none named.
    """
    if not isinstance(source, nn.Module):
        raise TypeError(
            f"this picture is of a spiking neuron or network, or of tensors, got {type(source).__name__}"
        )
    layers = spiking_layers(source)
    if not layers:
        raise TypeError(
            f"this picture is of a spiking neuron, or a network with one, got {type(source).__name__}"
        )
    if layer is None and len(layers) > 1 and "" not in layers:
        raise ValueError(f"this network has several layers of neurons: name one, layer={next(iter(layers))!r}; "
                         f"there are {', '.join(layers)}")  # fmt: skip
    if layer is not None and layer not in layers:
        raise ValueError(f"no layer of neurons at {layer!r}; there are {', '.join(layers)}")
    path = ("" if "" in layers else next(iter(layers))) if layer is None else layer
    x_seq = checked_sequence(x_seq, "x_seq")
    with torch.no_grad():
        if path == "":
            return _record_neuron(source, x_seq, membrane)
        x_in, s_seq = _run_network(source, path, x_seq)
        module = layers[path]
        if not membrane:
            return Recording(module, x_in, s_seq)
        return _record_neuron(module, x_in, membrane)


def _record_neuron(module: Any, x_seq: Tensor, membrane: bool) -> Recording:
    if isinstance(module, Neuron) or is_node(module):
        if not membrane:
            return Recording(module, x_seq, spikes_of(module, x_seq))
        m_seq, s_seq = membranes_and_spikes(module, x_seq)
    else:
        s_seq, m_seq = _record_host(module, x_seq, membrane)
    return Recording(module, x_seq, s_seq, m_seq if membrane else None)


def _record_host(module: Any, x_seq: Tensor, membrane: bool) -> tuple[Tensor, Tensor]:
    """Spikes and, if wanted, membranes of a framework's own neuron; both spikes otherwise."""
    node = _copy_at_rest(module)
    if hasattr(node, "step_mode") and not membrane:
        node.step_mode = "m"
        s_seq = node(x_seq)
        return s_seq, s_seq
    seen: list[Tensor] = []
    outputs: list[Tensor] = []
    if hasattr(node, "reset_mem"):  # snnTorch
        node.init_hidden, node.output = True, False
        for x in x_seq:
            outputs.append(_first(node(x)))
            seen.append(node.mem)
    elif hasattr(node, "surrogate_function") and thresholds_of(node):
        node.train()  # in evaluation SpikingJelly fuses the step, and the membrane is seen by nobody
        node.step_mode, node.backend = "s", "torch"
        node.surrogate_function = _Watched(node.surrogate_function, thresholds_of(node)[0], seen)
        outputs = [node(x) for x in x_seq]
    if len(seen) != len(x_seq):
        raise TypeError(
            f"the membrane of {type(module).__name__} before its reset cannot be seen: draw its spikes"
        )
    return torch.stack(outputs), torch.stack(seen)


class _Watched(nn.Module):
    """A surrogate of SpikingJelly's that keeps what it is given, the membrane before reset minus the threshold."""

    def __init__(self, fire: Any, threshold: float, seen: list[Tensor]) -> None:
        super().__init__()
        self.fire, self.threshold, self.seen = fire, threshold, seen

    def forward(self, u: Tensor) -> Tensor:
        self.seen.append(u + self.threshold)
        return self.fire(u)


def _run_network(net: nn.Module, path: str, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the layer at ``path``, [T, N, *], however the network takes its time steps.

    A network whose layer runs step by step either loops over time by itself, so that one call runs the layer several
    times, or is one step, which is called for each step here.
    """
    whole = takes_sequences(net.get_submodule(path))
    inputs, outputs, error = _watch(net, path, [x_seq])
    if not whole and len(outputs) < 2:
        inputs, outputs, error = _watch(net, path, list(x_seq))
    if error is not None:
        raise error
    if not outputs:
        raise ValueError(f"the forward pass of {type(net).__name__} does not call {path!r}")
    join = torch.cat if whole else torch.stack
    return join(inputs), join(outputs)


def _watch(
    net: nn.Module, path: str, calls: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], Exception | None]:
    copied = _copy_at_rest(net)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        inputs.append(args[0])
        outputs.append(_first(out))

    copied.get_submodule(path).register_forward_hook(keep)
    try:
        for x in calls:
            copied(x)
    except Exception as error:
        return [], [], error
    return inputs, outputs, None


def _copy_at_rest(module: Any) -> Any:
    try:
        copied = copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(f"the network cannot be copied ({error}): reset its neurons first") from error
    for part in copied.modules():
        if is_node(part):
            part.carried = None
        elif hasattr(part, "step_mode") and callable(getattr(part, "reset", None)):
            part.reset()
        elif callable(getattr(part, "reset_mem", None)):
            part.reset_mem()
    return copied


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def held_neuron(source: Any, kinds: tuple[type[Neuron], ...] = (Neuron,)) -> Any:
    """The neutral neuron in ``source``, with the settings that its node has now."""
    sync_settings = getattr(source, "sync_settings", None)
    if callable(sync_settings):
        sync_settings(torch.get_default_dtype())
    held = held_by(source)
    if not isinstance(held, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"this picture is of {names} (of msf_pmsn_plugins.neurons, or held by a node of either framework), got "
            f"{type(source).__name__ if held is None else type(held).__name__}"
        )
    return held


def checked_sequence(x_seq: Any, what: str) -> Tensor:
    """``x_seq`` if it is a sequence [T, *] with something in it; raise otherwise, in its name ``what``."""
    if not isinstance(x_seq, Tensor):
        raise TypeError(f"{what} must be a torch.Tensor, got {type(x_seq).__name__}")
    if x_seq.dim() == 0 or x_seq.numel() == 0:
        raise ValueError(
            f"{what} must be a sequence [T, *] with something in it, got shape {tuple(x_seq.shape)}"
        )
    return x_seq


@contextmanager
def at_rest(node: Any, sequence: bool) -> Iterator[None]:
    """A node of either framework, at rest and in sequence or step mode; afterwards as it was."""
    if hasattr(node, "step_mode"):
        words = {"step_mode": "m" if sequence else "s", "store_v_seq": False}
    else:
        words = {"sequence": sequence, "init_hidden": False}
    before = {name: getattr(node, name) for name in (*words, "carried")}
    try:
        node.carried = None
        for name, value in words.items():
            setattr(node, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(node, name, value)


def spikes_of(source: Any, x_seq: Tensor) -> Tensor:
    """The output [T, N, *] of a neuron, a node (without its hooks) or another callable."""
    if isinstance(source, Neuron):
        return source.sequence(x_seq)[0]
    if is_node(source):
        with at_rest(source, sequence=True):
            out = source.forward(x_seq)
    else:
        out = source(x_seq)
    return _first(out)


@torch.no_grad()
def membranes_and_spikes(source: Any, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Membranes before reset (volts) and spikes of a neuron or node, [T, N, *]."""
    held = held_neuron(source)
    if hasattr(source, "reset_mechanism") and isinstance(held, MSF):
        # In snnTorch's words `mem` is that membrane, also for the dynamics that only this node has.
        with at_rest(source, sequence=False):
            mem = source.reset_mem()
            pairs = []
            for x in x_seq:
                spk, mem = source.forward(x, mem)
                pairs.append((mem, spk))
        m_seq, s_seq = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return m_seq, s_seq
    _s_seq, _state, m_seq = held.sequence(x_seq, membrane=True)
    assert m_seq is not None
    return m_seq, spikes_of(source, x_seq)


def thresholds_of(module: Any) -> tuple[float, ...]:
    """All thresholds of a neuron, volts; none if it has one for each of its parts."""
    if held_by(module) is not None:
        held = held_neuron(module)
        if isinstance(held.v_threshold, Tensor) and held.v_threshold.numel() > 1:
            return ()
        return tuple(held.thresholds) if isinstance(held, MSF) else (float(held.v_threshold),)
    value = getattr(module, "v_threshold", getattr(module, "threshold", None))
    if isinstance(value, Tensor):
        return (float(value.detach()),) if value.numel() == 1 else ()
    return (float(value),) if isinstance(value, int | float) else ()


def flat(seq: Tensor) -> Tensor:
    """[T, *] -> [T, lanes], float64 on the CPU."""
    return seq.detach().to("cpu", torch.float64).reshape(len(seq), -1)
