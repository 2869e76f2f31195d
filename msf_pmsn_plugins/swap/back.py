"""From our neurons back to the host's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..hosts import host_of_node, load
from ..words import teaching_call
from .attached import carry_hooks, lost_with, reparametrised
from .edits import make, replacing
from .learned import frozen_alike, tied_alike, untied
from .running import arguments, rest, seeds_kept, undisturbed
from .sites import is_ours
from .spec import SwapError, require_built

__all__ = ["lif", "nodes"]


def nodes(model: nn.Module) -> dict[str, nn.Module]:
    """Our nodes in ``model`` by path, shared ones once per path."""
    return {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if is_ours(module) and host_of_node(module) is not None
    }


@teaching_call("swap.lif")
def lif(model: nn.Module, example_input: Any = None, *, lossy: bool = False) -> nn.Module:
    """Put the host's own neurons in place of ours, in place, and return the model.

    An MSF with D = 1 becomes the stock node with its charge, threshold, reset, surrogate and learned ``w``; the
    published charge, which is written in another order of operations, agrees up to rounding, and at ties a snnTorch
    neuron is silent. Where a plan is at hand, ``plan.undo()`` gives back the very modules.

    Args:
        model: a model with MSF or PMSN neurons.
        example_input: if given, the model is run on it; if that fails, our neurons are put back.
        lossy: also replace what loses something: counts above 1, PMSN, thresholds after the first.

    Raises:
        SwapError: no neuron of ours, or something would be lost and ``lossy`` was not said.
        TypeError: a model that is none, or a word that it does not take.
    """
    require_built(model)
    found = nodes(model)
    if not found:
        raise SwapError(f"{type(model).__name__} has no neuron of msf_pmsn_plugins")
    stock: dict[nn.Module, nn.Module] = {}
    losses = []
    owners = {}
    for path, node in found.items():
        name = host_of_node(node)
        assert name is not None
        if node not in stock:
            owners[node] = load(name)
            try:
                stock[node], lost = _stock_of(node, owners[node])
            except ValueError as error:
                raise SwapError(f"{path or '(the model)'}: {error}") from error
            losses += [f"  {path or '(the model)'}: {text}" for text in lost]
    tied_alike(owners, stock)
    for path, node in found.items():
        losses += [
            f"  {path or '(the model)'}: its {word} is one Parameter with {', '.join(others)}, and would be its own"
            for word, others in untied(model, owners[node], node, stock).items()
        ]
    if losses and not lossy:
        raise SwapError(
            "this loses what a LIF cannot hold; if that is meant, say lossy=True:\n" + "\n".join(losses)
        )
    edits = replacing(model, {path: stock[node] for path, node in found.items()})
    edits += [edit for node, new in stock.items() for edit in carry_hooks(node, new)]
    result = stock[found[""]] if "" in found else model
    _forget(model, found)
    make(edits)
    if example_input is not None:
        inputs = arguments(example_input)
        try:
            with torch.no_grad(), seeds_kept(result, inputs), undisturbed(result):
                rest(result)
                result(*inputs)
        except Exception:
            _forget(model, found)
            make([edit.inverse for edit in reversed(edits)])
            raise
    return result


def _stock_of(node: nn.Module, host: ModuleType) -> tuple[nn.Module, list[str]]:
    """A stock neuron in the place of one of our nodes, and what is lost by that; raises ValueError if there is none."""
    stock, lost = host.as_stock(node)
    like = next(node.parameters(), None)
    if like is not None:
        stock.to(like.device)
    stock.train(node.training)
    frozen_alike(host, node, stock)
    lost += [text for part in node.modules() if (text := reparametrised(part)) is not None]
    return stock, lost + [f"{text} stays behind" for text in lost_with(node)]


def _forget(model: nn.Module, found: dict[str, nn.Module]) -> None:
    """Before modules change: what hosts know about the modules of ``model``."""
    for host in {host_of_node(node) for node in found.values()}:
        assert host is not None
        load(host).after_swap(model)
