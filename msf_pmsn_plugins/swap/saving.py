"""A plan as plain data that rebuilds the swap, and back: safe for JSON and for ``torch.load(weights_only=True)``.

Nothing in a file is executed or imported. Numbers, names and tensors are stored; what belongs to the old neuron (its
surrogate, its learned ``w``) is stored as the name of its attribute and taken from the neuron of the new model; any
other callable is stored by its name and must be given again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..hosts import HOSTS, load, name_of
from ..surrogate import Surrogate
from .layout import Layout
from .site import SWAPPED, Site, words
from .spec import MSF, PMSN, Keep, Rule, SwapError, Target, require_built

__all__ = [
    "FORMAT",
    "layout_from",
    "model_facts",
    "plain",
    "require_model",
    "shapes_of",
    "site_from",
    "site_to_dict",
]

FORMAT = 1
TARGETS: dict[str, type[Target]] = {"MSF": MSF, "PMSN": PMSN, "Keep": Keep}
DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "bool")
# What a site's entry holds as it is; the rest is encoded.
SHOWN = (
    *("path", "old", "verdict", "note", "warnings", "step_mode", "calls", "shape", "time_dim", "channel_dim"),
    *("channels", "shared_with", "by_rule", "unfolds", "gives_output"),
)


ENCODED = ("around", "arguments", "carried", "sets")


def plain(value: Any) -> Any:
    """``value`` as JSON-native data, for reading: what has no such form becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, str | int | float | bool | None):
        return value
    return words(value)


# Values ---------------------------------------------------------------------------------------------------------------


def _encode(value: Any, module: nn.Module) -> Any:
    """``value`` as data from which :func:`_decode` makes it again."""
    if isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item, module) for item in value]}
    if isinstance(value, Surrogate):
        return {"surrogate": value.name, "width": value.width}
    for box in (module._parameters, module._buffers, module._modules, vars(module)):
        name = next((name for name, item in box.items() if item is value), None)
        if name is not None:
            return {"of the old neuron": name}
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return {"name": getattr(value, "__name__", type(value).__name__)}


def _decode(value: Any, module: nn.Module, names: Mapping[str, Callable[..., Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tuple" in value or "list" in value:
        kind = tuple if "tuple" in value else list
        return kind(_decode(item, module, names) for item in value[kind.__name__])
    if "surrogate" in value:
        return Surrogate(value["surrogate"], value["width"])
    if "of the old neuron" in value:
        return getattr(module, value["of the old neuron"])
    if "tensor" in value:
        if value["dtype"] not in DTYPES:
            raise SwapError(f"this plan has a tensor of {value['dtype']!r}; known: {', '.join(DTYPES)}")
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    name = str(value.get("name"))
    if name not in names:
        raise SwapError(
            f"this plan uses {name!r}, of which a file holds the name only: give it with "
            f"Plan.from_dict(model, d, names={{{name!r}: ..}})"
        )
    return names[name]


def _encoded(values: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    return {key: _encode(value, module) for key, value in values.items()}


def _decoded(values: Mapping[str, Any], module: nn.Module, names: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _decode(value, module, names) for key, value in values.items()}


# Sites ----------------------------------------------------------------------------------------------------------------


def site_to_dict(site: Site) -> dict[str, Any]:
    """All that the printed plan shows of a site, and all that rebuilds it."""
    module = site.module
    return {
        **{name: plain(getattr(site, name)) for name in SHOWN},
        "target": _target_to_dict(site.target, module),
        "host": name_of(site.host),
        "role": site.role,
        **{name: _encoded(getattr(site, name), module) for name in ENCODED},
        "reset": site.rule.reset,
        "clock": None if site.clock is None else site.clock.path,
    }


def site_from(
    data: Mapping[str, Any], model: nn.Module, device: torch.device, names: Mapping[str, Any]
) -> Site:
    """The site again, in a model like the one planned for; its clock is left to the caller."""
    path = data["path"]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise SwapError(f"this plan is for another model: it has no {path}") from None
    if type(module).__name__ != data["old"]:
        raise SwapError(
            f"this plan is for another model: {path or '(the model)'} is {type(module).__name__}, and was {data['old']}"
        )
    if data["host"] not in HOSTS:
        raise SwapError(f"this plan names an unknown framework {data['host']!r}; known: {', '.join(HOSTS)}")
    swapped = data["verdict"] in SWAPPED
    shown: dict[str, Any] = {name: _tuples(data[name]) for name in SHOWN}
    encoded: dict[str, Any] = {
        name: _decoded(data[name], module, names) if swapped else {} for name in ENCODED
    }
    return Site(
        **{**shown, "warnings": list(data["warnings"]), "shared_with": list(data["shared_with"])},
        target=_target_from(data["target"], module, names),
        module=module,
        host=load(data["host"]),
        role=data["role"],
        rule=Rule(reset=data["reset"]),
        device=device,
        **encoded,
    )


def _target_to_dict(target: Target, module: nn.Module) -> dict[str, Any]:
    values = {field.name: _encode(getattr(target, field.name), module) for field in fields(target)}
    return {"name": type(target).__name__, **values}


def _target_from(data: Mapping[str, Any], module: nn.Module, names: Mapping[str, Any]) -> Target:
    values = {key: _decode(value, module, names) for key, value in data.items() if key != "name"}
    if data["name"] not in TARGETS:
        raise SwapError(f"this plan names an unknown target {data['name']!r}; known: {', '.join(TARGETS)}")
    return TARGETS[data["name"]](**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def layout_from(data: Mapping[str, Any]) -> Layout:
    """The axes of the example again."""
    return Layout(**{name: _tuples(value) for name, value in data.items()})


# The model ------------------------------------------------------------------------------------------------------------


def model_facts(model: nn.Module, keys: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """By what the model is known again: its class, and the shapes of its state dict before the swap."""
    if keys is None:
        keys = shapes_of(model)
    return {"class": type(model).__name__, "shapes": {key: list(shape) for key, shape in keys.items()}}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes in a state dict; () for what is not known yet, or is no tensor."""
    return {
        key: tuple(value.shape)
        if isinstance(value, Tensor) and not isinstance(value, UninitializedParameter | UninitializedBuffer)
        else ()
        for key, value in model.state_dict().items()
    }


def require_model(model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Raise SwapError unless ``model`` is like the one that was planned for, TypeError if it is no module."""
    require_built(model)
    now = model_facts(model)
    if now["class"] != facts["class"]:
        raise SwapError(f"this plan is for a {facts['class']}, and this model is a {now['class']}")
    old, new = facts["shapes"], now["shapes"]
    wrong = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if wrong:
        rows = [f"  {key}: {_shape(old.get(key))} then, {_shape(new.get(key))} now" for key in wrong[:6]]
        more = f"\n  .. and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise SwapError(
            "this plan is for another model, or for this one before it was swapped; build it as it was:\n"
            + "\n".join(rows)
            + more
        )


def _shape(shape: list[int] | None) -> str:
    return "absent" if shape is None else str(list(shape))
