"""Names and modules that stand for others until a context ends."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

__all__ = ["StandIn", "exists", "fails_to_import", "install", "set_until_exit"]


def set_until_exit(changes: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the context ends."""
    if name in vars(owner):
        changes.callback(setattr, owner, name, vars(owner)[name])
    else:
        changes.callback(delattr, owner, name)
    setattr(owner, name, value)


def install(changes: ExitStack, module: ModuleType, name: str | None = None) -> None:
    """Make a module importable until the context ends, as ``name`` or its own."""
    name = name or module.__name__
    old = sys.modules.get(name)
    if old is None:
        changes.callback(sys.modules.pop, name, None)
    else:
        changes.callback(sys.modules.__setitem__, name, old)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        set_until_exit(changes, sys.modules[parent], child, module)


class StandIn(ModuleType):
    """A module that stands for another one and says what it offers when asked for more.

    Args:
        hint: of this module and a name that it lacks: what to do.
    """

    def __init__(self, name: str, offers: dict[str, Any], hint: Callable[[str, str], str]) -> None:
        super().__init__(name, f"Stand-in for {name}.")
        self.__path__: list[str] = []  # a package: its parts are found in sys.modules
        self.__hint__ = hint
        self.__all__ = sorted(offers)
        vars(self).update(offers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        offered = ", ".join(self.__all__) or "nothing"
        raise ImportError(
            f"{self.__name__} has no {name!r} under legacy_imports(); it offers {offered}. "
            f"{self.__hint__(self.__name__, name)}"
        )


def exists(name: str) -> bool:
    """Whether a module of that name can be found."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def fails_to_import(name: str) -> bool:
    """Whether importing it raises ImportError."""
    try:
        importlib.import_module(name)
    except ImportError:
        return True
    return False
