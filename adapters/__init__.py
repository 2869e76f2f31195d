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
import warnings
from importlib.metadata import entry_points

from msf_pmsn_plugins.adapters.recipe import Recipe
from torch import nn

__all__ = ["RECIPES", "Recipe", "get", "loadable", "recipes", "recognise"]

RECIPES = (
    "learnable_delays",
    "ma_snn",
    "max_former",
    "ms_resnet",
    "plif_net",
    "qkformer",
    "qsd_transformer",
    "sew_resnet",
    "sglformer",
    "snntorch_tutorials",
    "spike_driven_transformer",
    "spike_driven_transformer_v2",
    "spike_driven_transformer_v3",
    "spike_yolo",
    "spikformer",
    "spiking_resformer",
    "spiking_resnet",
    "spiking_vgg",
    "spikingformer",
    "step",
    "tet_vgg",
)
"""Each is a module of this package with a ``RECIPE``."""


def recipes() -> list[str]:
    """Names of all known recipes, other packages' included."""
    return sorted({*RECIPES, *(e.name for e in entry_points(group="msf_pmsn_plugins.recipes"))})


def get(name: str) -> Recipe:
    """The recipe called ``name``. Raises KeyError, naming the known ones."""
    if name in RECIPES:
        return importlib.import_module(f"{__name__}.{name}").RECIPE
    for entry in entry_points(group="msf_pmsn_plugins.recipes"):
        if entry.name == name:
            return entry.load()
    raise KeyError(f"unknown recipe {name!r}; known: {', '.join(recipes())}")


def loadable() -> list[Recipe]:
    """All known recipes. One of another package that cannot be loaded is left out, with a warning that names it."""
    found = [get(name) for name in RECIPES]
    for entry in entry_points(group="msf_pmsn_plugins.recipes"):
        if entry.name in RECIPES:
            continue
        try:
            found.append(entry.load())
        except Exception as error:  # whatever a third party's module raises
            owner = entry.dist.name if entry.dist else entry.value
            warnings.warn(
                f"the recipe {entry.name!r} of the package {owner!r} cannot be loaded and is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
    return sorted(found, key=lambda recipe: recipe.name)


def recognise(model: nn.Module) -> Recipe | None:
    """The recipe that built ``model``, or None. Of several that fit, the one that says most about its modules."""
    fitting = [recipe for recipe in loadable() if recipe.fits(model)]
    return max(fitting, key=lambda recipe: recipe.demands, default=None)
