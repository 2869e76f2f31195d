"""Backends: providers of ``msf_fwd``, ``msf_bwd``, ``pmsn_fwd``, ``pmsn_bwd`` behind the custom ops.

A backend is one module and one line in :data:`BACKENDS`. ``"auto"`` takes the first entry that runs where the
input lies; a name given explicitly is used or raises.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import Tensor

__all__ = ["BACKENDS", "load", "resolve"]

BACKENDS: dict[str, str] = {
    "torch": "msf_pmsn_plugins.backends.torch_backend",
}


def check(name: str) -> str:
    """Return ``name`` if it is ``"auto"`` or a key of :data:`BACKENDS`, else raise ValueError."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: 'auto', {', '.join(map(repr, BACKENDS))}")
    return name


def resolve(name: str, x: Tensor) -> str:
    """The backend that will run ``x``: ``name`` itself, or the choice of ``"auto"``."""
    return "torch" if check(name) == "auto" else name


def load(name: str) -> ModuleType:
    """Import the backend's module."""
    return importlib.import_module(BACKENDS[name])
