"""What neurons carry from step to step: take it out of a network, keep it, change its batch, put it back.

A state is a tuple of tensors with the batch on axis 0; :func:`read` collects those of a whole network in a plain dict,
which ``torch.save`` writes and ``torch.load(..., weights_only=True)`` reads. The other functions take either, or any
nesting of lists, tuples and dicts of tensors::

    states = state.read(net)
    state.write(net, state.select(states, still_undecided))  # early exit: go on with a part of the batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .lengths import Lengths
from .neurons.base import State
from .neurons.nodes import is_node

__all__ = ["detach", "move", "padded", "read", "select", "write"]


def _nodes(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """The nodes of this package in ``net``, by path: MSF, PMSN, ParallelIF, own neurons, in either framework."""
    for path, module in net.named_modules():
        if is_node(module):
            yield path, module


def read(net: nn.Module) -> dict[str, State]:
    """The states of all nodes of this package in ``net`` by path; nodes at rest are left out."""
    return {path: node.carried for path, node in _nodes(net) if node.carried is not None}


def write(net: nn.Module, states: dict[str, State]) -> None:
    """Put states back, as :func:`read` returned them; nodes that they do not name come to rest.

    Raises:
        KeyError: a path where ``net`` has no node of this package.
    """
    nodes = dict(_nodes(net))
    unknown = sorted(states.keys() - nodes.keys())
    if unknown:
        raise KeyError(f"no node of msf_pmsn_plugins at {unknown}; this network has them at {sorted(nodes)}")
    for path, node in nodes.items():
        node.carried = states.get(path)


def _map(function: Callable[[Tensor], Tensor], states: Any) -> Any:
    return pytree.tree_map_only(Tensor, function, states)


def select(states: Any, index: Tensor | slice) -> Any:
    """The samples ``index`` of the batch: a slice, a bool mask [N] or integers, in their order and repeated as given.

    Raises:
        TypeError: an ``index`` that would take a whole axis away.
    """
    if (
        isinstance(index, Tensor)
        and index.dim() == 1
        and not (index.is_floating_point() or index.is_complex())
    ):
        chosen = index if index.dtype == torch.bool else index.long()  # torch would take bytes for a mask
        return _map(lambda tensor: tensor[chosen.to(tensor.device)], states)
    if isinstance(index, slice):
        return _map(lambda tensor: tensor[index], states)
    raise TypeError(f"index must be a slice, a bool mask [N] or a 1-d integer tensor, got {index!r}")


def move(states: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The same states on another device, or in float32 or float64 (complex parts in the complex dtype of that width).

    Raises:
        ValueError: another dtype; a state in half precision would lose spikes.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"states are float32 or float64, got {dtype}")

    def move_one(tensor: Tensor) -> Tensor:
        wide = {torch.float32: torch.complex64, torch.float64: torch.complex128, None: None}[dtype]
        return tensor.to(
            device=device or tensor.device, dtype=(wide if tensor.is_complex() else dtype) or tensor.dtype
        )

    return _map(move_one, states)


def detach(states: Any) -> Any:
    """The same states without their graph: truncated backpropagation through time."""
    return _map(Tensor.detach, states)


@contextmanager
def padded(net: nn.Module, lengths: Lengths) -> Iterator[None]:
    """Run ``net`` on sequences [T, N, *] padded at their ends: its nodes of this package skip the padding.

    Padded steps emit 0 and touch neither state nor gradient. Layers between the nodes see zeros there; what mixes time
    steps or samples (batch normalisation in training, a mean over T) is theirs to mask.

    Args:
        net: a network in multi-step (``step_mode='m'``, ``sequence=True``) form.
        lengths: valid steps of each sample [N], or a bool mask [T, N].

    Raises:
        ValueError: no node of this package in ``net``.
    """
    nodes = [node for _, node in _nodes(net)]
    if not nodes:
        raise ValueError("this network has no node of msf_pmsn_plugins that could skip padding")
    before = [node.padding for node in nodes]
    try:
        for node in nodes:
            node.padding = lengths
        yield
    finally:
        for node, old in zip(nodes, before, strict=True):
            node.padding = old
