"""Which numbers of a neuron learn: in the neuron in its place they still do, or still do not, and stay shared."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import nn

__all__ = ["frozen_alike", "tied_alike", "untied"]


def frozen_alike(host: ModuleType, old: nn.Module, new: nn.Module) -> None:
    """Let the numbers of ``new`` learn where those of ``old`` do."""
    ours = host.learned(new)
    for word, parameter in host.learned(old).items():
        if word in ours:
            ours[word].requires_grad_(parameter.requires_grad)


def tied_alike(hosts: Mapping[nn.Module, ModuleType], new: Mapping[nn.Module, nn.Module]) -> None:
    """Where neurons, the keys, share a Parameter and hold equal numbers after the swap, let ``new`` share one."""
    first: dict[nn.Parameter, nn.Parameter] = {}
    for old, node in new.items():
        ours = hosts[old].learned(_node(node))
        for word, parameter in hosts[old].learned(old).items():
            if word in ours and _equal(shared := first.setdefault(parameter, ours[word]), ours[word]):
                _assign(node, ours[word], shared)


def untied(
    model: nn.Module, host: ModuleType, old: nn.Module, new: Mapping[nn.Module, nn.Module]
) -> dict[str, list[str]]:
    """Of the numbers of ``old`` that its new neuron learns: who else holds the Parameter, and will have another."""
    found: dict[str, list[str]] = {}
    after = {part: host.learned(_node(node)) for neuron, node in new.items() for part in neuron.modules()}
    ours = after[old]
    for word, parameter in host.learned(old).items():
        for path, module in model.named_modules() if word in ours else ():
            held = [name for name, other in module._parameters.items() if other is parameter]
            # A neuron that is swapped for one without that number has no second one.
            others = after.get(module, {word: parameter}).get(word, ours[word])
            if held and others is not ours[word]:
                found.setdefault(word, []).extend(f"{path}.{name}".lstrip(".") for name in held)
    return found


def _node(module: nn.Module) -> nn.Module:
    """The node that ``module`` is or wraps."""
    inner = getattr(module, "node", module)
    return inner if isinstance(inner, nn.Module) else module


def _equal(a: nn.Parameter, b: nn.Parameter) -> bool:
    return a.shape == b.shape and a.device == b.device and (a.is_meta or torch.equal(a, b))


def _assign(node: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    for module in node.modules():
        for name, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[name] = new
