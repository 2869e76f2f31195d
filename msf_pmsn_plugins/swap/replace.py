"""Modules in the place of others, wherever a net keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["replace"]


def replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Set ``modules`` at their paths in ``model``, and in plain lists, dicts and tuples that hold those of before.

    Some nets walk over such a list of their own modules. A module that stays in the model elsewhere stays in lists.
    """
    new: dict[nn.Module, nn.Module] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if name:
            holder = model.get_submodule(parent)
            new[getattr(holder, name)] = module
            setattr(holder, name, module)
    for module in model.modules():
        new.pop(module, None)
    done: dict[int, tuple[Any, Any]] = {}
    for module in model.modules() if new else ():
        attributes = vars(module)
        done[id(module._modules)] = module._modules, module._modules  # the rules chose what is there
        for name, value in list(attributes.items()):
            after = _follow(value, new, done)
            if after is not value:
                attributes[name] = after


def _follow(value: Any, new: Mapping[nn.Module, nn.Module], done: dict[int, tuple[Any, Any]]) -> Any:
    """``value`` with the modules in it replaced; ``done``: containers, kept alive, and what became of them, by id."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if type(value) not in (list, dict, tuple):
        return value
    if id(value) not in done:
        done[id(value)] = value, value  # one may hold itself
        parts = list(value.items() if type(value) is dict else enumerate(value))
        changed = {key: after for key, part in parts if (after := _follow(part, new, done)) is not part}
        if type(value) is tuple and changed:
            done[id(value)] = value, tuple(changed.get(key, part) for key, part in parts)
        else:
            for key, after in changed.items():
                value[key] = after
    return done[id(value)][1]
