"""Swap the neurons of a built model, in place, and say beforehand what will happen.

::

    plan = swap.plan(model, example_input, swap.MSF(D=4))
    print(plan)              # per neuron: path, class, shape of a step, time and channel axis, verdict
    model = plan.apply()     # raises while a verdict is unresolved; returns the model
    plan.undo()              # the old neurons again

    model = swap.msf(model, example_input, D=4)                  # plan and apply
    model = swap.pmsn(model, example_input, compartments=5)
    model = swap.lif(model)                                      # back to the host's neurons

    print(swap.verify(model, example_input))                     # after any swap

The probe runs the model without gradients in evaluation mode: on the example, with another batch, another T and, where
the model allows, another height and width (the channel axis is the one that stays), and once swapped. States, modes,
buffers, other attributes of the modules, and random generators are put back.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..words import PMSN_HAS_NOT, teaching_call
from .back import lif
from .check import Check, Report, verify
from .planner import plan
from .plans import Plan
from .site import Site
from .spec import (
    MSF,
    OF_SINGLE_SITES,
    OF_THE_SITE,
    PMSN,
    Activation,
    Keep,
    Read,
    Reading,
    Rule,
    SwapError,
    SwapWarning,
    Target,
)

__all__ = [
    "MSF",
    "PMSN",
    "Activation",
    "Check",
    "Keep",
    "Plan",
    "Read",
    "Report",
    "Rule",
    "Site",
    "SwapError",
    "SwapWarning",
    "Target",
    "lif",
    "msf",
    "plan",
    "pmsn",
    "verify",
]


# What recipes need besides, loaded on first use.
_LATER = {
    "calibrate": ("calibrate", None),
    "legacy_imports": ("legacy", "legacy_imports"),
    "load_published": ("published", "load_published"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, item = _LATER[name]
    found = importlib.import_module(f"{__name__}.{module}")
    return found if item is None else getattr(found, item)


_TARGET = {"target": "the target's words are said one by one, as D=4; swap.plan takes a target whole"}


@teaching_call("swap.msf", {**OF_SINGLE_SITES, **OF_THE_SITE, **_TARGET}, MSF)
def msf(
    model: nn.Module,
    example_input: Any,
    *,
    dynamics: str = "site",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    rules: Mapping[Any, Target | Rule] | None = None,
    time_dim: int | str = "auto",
    neuron_classes: Sequence[type] | Mapping[type, Reading] = (),
    **spec: Any,
) -> nn.Module:
    """Swap every neuron for an MSF, in place, and return the model.

    ``plan(model, example_input, MSF(**spec), ..).apply()``, with the plan's warnings as warnings.
    """
    options = {"filter_fn": filter_fn, "rules": rules, "time_dim": time_dim, "neuron_classes": neuron_classes}
    return _carried_out(plan(model, example_input, MSF(**spec), dynamics=dynamics, **options))  # type: ignore[arg-type]


@teaching_call("swap.pmsn", {**OF_SINGLE_SITES, **PMSN_HAS_NOT, **_TARGET}, PMSN)
def pmsn(
    model: nn.Module,
    example_input: Any,
    *,
    dynamics: str = "site",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    rules: Mapping[Any, Target | Rule] | None = None,
    time_dim: int | str = "auto",
    neuron_classes: Sequence[type] | Mapping[type, Reading] = (),
    **spec: Any,
) -> nn.Module:
    """Swap every neuron for a PMSN, in place, and return the model.

    ``plan(model, example_input, PMSN(**spec), ..).apply()``, with the plan's warnings as warnings.
    """
    options = {"filter_fn": filter_fn, "rules": rules, "time_dim": time_dim, "neuron_classes": neuron_classes}
    return _carried_out(plan(model, example_input, PMSN(**spec), dynamics=dynamics, **options))  # type: ignore[arg-type]


def _carried_out(plan: Plan) -> nn.Module:
    """Apply a plan, and warn of what it warns of: before, so that a warning raised as an error changes nothing."""
    plan.check()
    for text in plan.all_warnings():
        warnings.warn(text, SwapWarning, stacklevel=4)
    return plan.apply()
