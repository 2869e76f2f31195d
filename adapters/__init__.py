"""Adapters: what a published recipe needs beyond what the swap can see for itself. One file per recipe.

:data:`RECIPES` names the ones shipped here; other packages add theirs through the entry-point group
``msf_pmsn_plugins.recipes``. :func:`recipes` gives both.
"""

from __future__ import annotations

if __name__ != "msf_pmsn_plugins.adapters":
    raise ImportError(
        "this folder is the package msf_pmsn_plugins.adapters: install the project (pip install -e .) "
        "and import it by that name"
    )

import importlib
from importlib.metadata import entry_points

from msf_pmsn_plugins.adapters.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "get", "recipes"]

RECIPES: dict[str, str] = {
    "sew_resnet": "msf_pmsn_plugins.adapters.sew_resnet",
    "spikformer": "msf_pmsn_plugins.adapters.spikformer",
}


def recipes() -> list[str]:
    """Names of all known recipes, other packages' included."""
    return sorted({*RECIPES, *(e.name for e in entry_points(group="msf_pmsn_plugins.recipes"))})


def get(name: str) -> Recipe:
    """The recipe called ``name``. Raises KeyError, naming the known ones."""
    if name in RECIPES:
        return importlib.import_module(RECIPES[name]).RECIPE
    for entry in entry_points(group="msf_pmsn_plugins.recipes"):
        if entry.name == name:
            return entry.load()
    raise KeyError(f"unknown recipe {name!r}; known: {', '.join(recipes())}")
