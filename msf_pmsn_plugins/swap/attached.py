"""What was put on a neuron from outside: hooks go over to the neuron in its place, and all else is named."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .edits import ABSENT, Edit

__all__ = ["carry_hooks", "hooks_on", "lost_with", "patched", "reparametrised", "without_hooks"]

# The boxes of hooks that a module has; those that only say how another is called have no name of their own.
HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_pre_hooks_with_kwargs": "",
    "_forward_hooks": "forward hook",
    "_forward_hooks_with_kwargs": "",
    "_forward_hooks_always_called": "",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
    "_state_dict_pre_hooks": "state-dict hook",
    "_state_dict_hooks": "state-dict hook",
    "_load_state_dict_pre_hooks": "load-state-dict hook",
    "_load_state_dict_post_hooks": "load-state-dict hook",
}
HELD = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "submodule"}


def carry_hooks(old: nn.Module, new: nn.Module) -> list[Edit]:
    """The edits that give ``new`` the hooks of ``old``, in the very boxes: their handles go on removing them."""
    edits = []
    for name in HOOKS:
        box = vars(old).get(name)
        if not box:
            continue
        edits.append(Edit(vars(new), name, vars(new)[name], box))
        for key, hook in box.items():
            function = getattr(hook, "hook", hook)  # torch may have wrapped it
            if getattr(function, "__self__", None) is old:  # of the old class, for its own state dict
                edits.append(Edit(box, key, hook, ABSENT))
            elif isinstance(getattr(hook, "module", None), weakref.ref):
                edits.append(Edit(box, key, hook, type(hook)(function, new)))
    kind = "_is_full_backward_hook"
    if vars(old).get(kind) is not None:
        edits.append(Edit(vars(new), kind, vars(new)[kind], vars(old)[kind]))
    return edits


def hooks_on(module: nn.Module) -> list[str]:
    """The hooks of ``module``, each kind once."""
    return list(dict.fromkeys(kind for name, kind in HOOKS.items() if kind and vars(module).get(name)))


def without_hooks(module: nn.Module) -> nn.Module:
    """``module``, a copy to experiment with, without its hooks: they are no part of how a neuron computes."""
    for name in HOOKS:
        vars(module).get(name, {}).clear()
    return module


def reparametrised(module: nn.Module) -> str | None:
    """What computes parameters of ``module`` anew before they are used, and how to make them final; None if nothing."""
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        name = next(iter(parametrizations))
        kinds = ", ".join(type(part).__name__ for part in parametrizations[name])
        return (
            f"its {name} is parametrised by {kinds}, which the neuron in its place would not be: make the value final "
            f"with torch.nn.utils.parametrize.remove_parametrizations(neuron, {name!r})"
        )
    for hook in vars(module).get("_forward_pre_hooks", {}).values():
        name = getattr(hook, "_tensor_name", getattr(hook, "name", None))
        if type(hook).__module__.startswith("torch.nn.utils."):
            return (
                f"its {name} is computed by {type(hook).__name__} before every call, which the neuron in its place has "
                f"no tensors for: make the value final, a pruned one with torch.nn.utils.prune.remove(neuron, {name!r})"
            )
    return None


def patched(module: nn.Module) -> list[str]:
    """The methods of its class that ``module`` has others of, put in by somebody."""
    kind = type(module)
    return [
        name
        for name in vars(module)
        if callable(own := getattr(kind, name, None)) and not isinstance(own, type | nn.Module)
    ]


def lost_with(module: nn.Module) -> list[str]:
    """What of ``module`` a neuron in its place will not have, though its class knows nothing of it, in words."""
    known = _names_of(type(module))
    found: dict[str, list[str]] = {"method": patched(module)}
    for box, kind in HELD.items():
        found[kind] = [name for name in vars(module)[box] if name not in known]
    found["attribute"] = [name for name in vars(module) if name not in known and name not in found["method"]]
    lines = [f"{kind}{'s' * (len(names) > 1)} {', '.join(names)}" for kind, names in found.items() if names]
    if vars(module).get("_is_full_backward_hook") is False and module._backward_hooks:
        lines.append(
            "what its backward hook sees (register_backward_hook gives the gradients of the last operation, "
            "register_full_backward_hook those of the neuron)"
        )
    return lines


def _names_of(kind: type) -> set[str]:
    """Every name in the code of a class and its bases: what they may give to an object."""
    found = {*vars(nn.Module()), "kept"}  # which a swap notes on its neurons
    for cls in kind.__mro__:
        if cls in (nn.Module, object):
            continue
        found |= set(getattr(cls, "__annotations__", ())) | vars(cls).keys()
        for value in vars(cls).values():
            for function in (value, *(getattr(value, name, None) for name in ("fget", "fset", "__func__"))):
                while function is not None:
                    if isinstance(code := getattr(function, "__code__", None), CodeType):
                        found |= set(_names_in(code))
                    function = getattr(function, "__wrapped__", None)
    return found


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, tuple | frozenset):
            yield from (part for part in constant if isinstance(part, str))
