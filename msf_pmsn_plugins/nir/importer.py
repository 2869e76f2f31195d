"""From a graph of NIR to a network."""

from __future__ import annotations

import graphlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hosts import HOSTS
from .files import read
from .hosts import builder_for
from .libraries import nir, nirtorch


def import_from_nir(
    graph: Any,
    host: str = "snntorch",
    *,
    dt: float = 1e-4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """See :func:`msf_pmsn_plugins.nir.import_from_nir`."""
    if host not in HOSTS:
        raise ValueError(f"unknown host {host!r}; known: {', '.join(HOSTS)}")
    if isinstance(graph, str | Path):
        graph = read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph or a path, got {type(graph).__name__}")
    _check_ends(graph)
    cycle = _cycle(graph)
    if cycle and (options.get("sequence") or options.get("step_mode") == "m"):
        raise ValueError(
            f"the graph is recurrent ({' -> '.join(cycle)}), so it runs step by step: import it without sequence=True "
            "or step_mode='m'"
        )
    importer = builder_for(host, dt, dtype, options)
    table = importer.table()
    names = {id(node): name for name, node in graph.nodes.items()}

    def build(node: Any) -> Any:
        try:
            return table[type(node)](node)
        except ValueError as error:
            raise ValueError(f"node {names[id(node)]!r} ({type(node).__name__}): {error}") from error

    for name, node in graph.nodes.items():
        if type(node) not in table:
            known = ", ".join(sorted(kind.__name__ for kind in table))
            raise ValueError(
                f"node {name!r} is a {type(node).__name__}, which has no module here; known: {known}"
            )
    net = nirtorch.nir_to_torch(
        graph, dict.fromkeys(table, build), default_map={}, device=device, dtype=dtype
    )
    importer.finish(net)
    if cycle:
        net.register_forward_pre_hook(_check_state, with_kwargs=True)
    return net


def _check_ends(graph: Any) -> None:
    """Raise ValueError unless there is one input and one output, and all else on a way from one to the other.

    Of other graphs nirtorch looks for the next node for ever.
    """
    for kind in (nir.Input, nir.Output):
        ends = sorted(name for name, node in graph.nodes.items() if isinstance(node, kind))
        if len(ends) != 1:
            raise ValueError(
                f"the graph has {len(ends)} nodes {kind.__name__}, {ends}: a network here has one input and one output"
            )
        after = kind is nir.Input
        way, more = set(ends), set(ends)
        while more:
            more = {pair[after] for pair in graph.edges if pair[not after] in more} - way
            way |= more
        if lost := sorted(graph.nodes.keys() - way):
            where = "no way from the input leads to" if after else "no way leads to the output from"
            raise ValueError(f"{where} {lost}: take these nodes out of the graph")


def _cycle(graph: Any) -> list[str]:
    """The nodes of a cycle, empty if there is none."""
    before: dict[str, set[str]] = {name: set() for name in graph.nodes}
    for source, target in graph.edges:
        before[target].add(source)
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def _check_state(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What goes around a cycle is in the state that a call returns, what a neuron keeps in the neuron: both or none."""
    given = args[1] if len(args) > 1 else kwargs.get("state")
    if given is None and any(getattr(module, "carried", None) is not None for module in net.modules()):
        raise ValueError(
            "this recurrent network is past its first step and was called without its state: pass on what the call "
            "before returned, y, state = net(x, state), or reset the neurons to begin anew"
        )
