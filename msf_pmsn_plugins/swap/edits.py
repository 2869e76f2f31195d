"""Modules in the place of others, wherever a net keeps them: all or none, at whatever line it is interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["ABSENT", "Edit", "make", "replacing"]

ABSENT = object()


@dataclass(frozen=True)
class Edit:
    """``container[key]`` from ``old`` to ``new``, where ABSENT is no entry; of a set, the element itself."""

    container: Any
    key: Any
    old: Any
    new: Any

    @property
    def made(self) -> bool:
        if isinstance(self.container, set):
            return self.new in self.container
        if isinstance(self.container, dict):
            return self.container.get(self.key, ABSENT) is self.new
        return self.container[self.key] is self.new

    @property
    def inverse(self) -> Edit:
        return Edit(self.container, self.key, self.new, self.old)

    def make(self) -> None:
        """Any number of times."""
        if isinstance(self.container, set):
            self.container.discard(self.old)
            self.container.add(self.new)
        elif self.new is ABSENT:
            self.container.pop(self.key, None)
        else:
            self.container[self.key] = self.new


def make(edits: Sequence[Edit]) -> None:
    """Make all edits, in their order, or none: if the last one stands, all do."""
    try:
        try:
            for edit in edits:
                edit.make()
        finally:
            _revert_unfinished(edits)
    finally:
        _revert_unfinished(edits)  # again: an interrupt may have stopped the first


def _revert_unfinished(edits: Sequence[Edit]) -> None:
    if edits and not edits[-1].made:
        for edit in reversed(edits):
            edit.inverse.make()


def replacing(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[Edit]:
    """What puts ``modules`` at their paths in ``model``, and in plain containers that hold those of before.

    Some nets walk over such a list of their own modules. A module that stays in the model elsewhere stays in lists.
    """
    found: list[Edit] = []
    new: dict[nn.Module, nn.Module] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if name:
            children = model.get_submodule(parent)._modules
            old = children[name]
            assert old is not None
            new[old] = module
            found.append(Edit(children, name, old, module))
    staying = {m for path, m in model.named_modules(remove_duplicate=False) if not _inside(path, modules)}
    new = {old: module for old, module in new.items() if old not in staying}
    follow = _Follow(new, found)
    for module in staying if new else ():
        follow.seen[id(module._modules)] = module._modules, module._modules  # the rules chose what is there
        follow.content(vars(module))
    return found


def _inside(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a path is that of a module to be replaced, or lies inside one."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in modules for n in range(1, len(parts) + 1))


class _Follow:
    """Finds modules in plain lists, dicts, sets and tuples, and notes the edits that replace them."""

    def __init__(self, new: Mapping[nn.Module, nn.Module], edits: list[Edit]) -> None:
        self.new, self.edits = new, edits
        self.seen: dict[int, tuple[Any, Any]] = {}  # containers, kept alive, and what becomes of them, by id

    def value(self, value: Any) -> Any:
        """What stands in the place of ``value``."""
        if isinstance(value, nn.Module):
            return self.new.get(value, value)
        if type(value) not in (list, dict, tuple, set):
            return value
        if id(value) not in self.seen:
            self.seen[id(value)] = value, value  # one may hold itself
            if type(value) is tuple:
                parts = tuple(self.value(part) for part in value)
                changed = any(a is not b for a, b in zip(parts, value, strict=True))
                self.seen[id(value)] = value, parts if changed else value
            else:
                self.content(value)
        return self.seen[id(value)][1]

    def content(self, container: Any) -> None:
        parts = container.items() if isinstance(container, dict) else enumerate(container)
        for key, part in list(parts):
            after = self.value(part)
            if after is not part:
                self.edits.append(Edit(container, key, part, after))
