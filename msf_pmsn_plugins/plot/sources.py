"""What is drawn: the spikes and membranes of a neuron, or of the node that holds one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..neurons import MSF, Neuron


def held_neuron(source: Any, kinds: tuple[type[Neuron], ...] = (Neuron,)) -> Any:
    """The neutral neuron in ``source``, with the settings that its node has now."""
    sync_settings = getattr(source, "sync_settings", None)
    if callable(sync_settings):
        sync_settings(torch.get_default_dtype())
    held = source if isinstance(source, Neuron) else getattr(source, "neuron", None)
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
    held = getattr(source, "neuron", None)
    if isinstance(source, Neuron):
        return source.sequence(x_seq)[0]
    if isinstance(held, Neuron) and hasattr(source, "carried"):
        with at_rest(source, sequence=True):
            out = source.forward(x_seq)
    else:
        out = source(x_seq)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def membranes_and_spikes(source: Any, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Membranes before reset (volts) and spikes of a neuron or node, [T, N, *]."""
    held = held_neuron(source)
    if hasattr(source, "reset_mechanism") and isinstance(held, MSF):
        # In snnTorch's words `mem` is that membrane, also for the dynamics that only this skin has.
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


def thresholds_of(held: Any) -> list[float]:
    """All thresholds, volts."""
    return held.thresholds if isinstance(held, MSF) else [float(held.v_threshold)]


def flat(seq: Tensor) -> Tensor:
    """[T, *] -> [T, lanes], float64 on the CPU."""
    return seq.detach().to("cpu", torch.float64).reshape(len(seq), -1)
