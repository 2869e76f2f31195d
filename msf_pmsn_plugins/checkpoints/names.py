"""From published names to those of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..neurons import MSF, PMSN
from ..neurons.pmsn import PARAMETERS
from .sources import Source

# Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
# Parts of a name that the MSF code's containers add, and that a model without them lacks.
CONTAINERS = ("0", "bn")
# The path of a published neuron, and the name of its parameter under kernel, or D beside it.
PUBLISHED = re.compile(rf"((?:.*\.)?)(?:kernel\.({'|'.join(n for n in PARAMETERS if n != 'D')})|(D))")


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def strip_prefixes(state: dict[str, Tensor], targets: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Take the wrappers' prefixes from all names, unless the model's own names have them too."""
    taken = ""
    while True:
        for prefix in PREFIXES:
            ours = targets and all(name.startswith(prefix) for name in targets)
            if not ours and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                taken += prefix
                break
        else:
            return state, taken


def swap_prefix(name: str, old: str, new: str) -> str | None:
    """``name`` with the leading parts ``old`` replaced by ``new``; None if it does not begin with them."""
    if old and name != old and not name.startswith(old + "."):
        return None
    rest = name[len(old) :].removeprefix(".")
    return ".".join(part for part in (new, rest) if part)


def rename_entries(
    state: Collection[str], rename: Mapping[str, str | None]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Published name -> name asked for, and the names left out."""
    order = sorted(rename, key=len, reverse=True)
    names, left_out, used = {}, [], set()
    for name in state:
        old = next((o for o in order if swap_prefix(name, o, "") is not None), None)
        used.add(old)
        new = "" if old is None else rename[old]
        if old is None:
            names[name] = name
        elif new is None:
            left_out.append(name)
        else:
            names[name] = swap_prefix(name, old, new) or ""
    if idle := [old for old in rename if old not in used]:
        raise ValueError(
            f"rename: no published name begins with {idle}; the first ones are {list(state)[:5]}"
        )
    return names, tuple(left_out)


@dataclass(frozen=True)
class Target:
    """An entry of the model's state dict."""

    tensor: Tensor
    neuron: PMSN | None
    """The PMSN that owns it."""


def targets_of(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """The entries of the model's state dict by name."""
    # not state_dict(): that of a PMSN whose channels are not known raises, and hosts add entries
    for path, module in model.named_modules(remove_duplicate=False):
        owned = [*module._parameters.items()]
        owned += [(k, v) for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set]
        for name, tensor in owned:
            if tensor is not None:
                neuron = module if isinstance(module, PMSN) and name in PARAMETERS else None
                yield (f"{path}.{name}" if path else name), Target(tensor, neuron)


def places_of(names: Mapping[str, str], targets: Mapping[str, Target], kind: Source) -> dict[str, str | None]:
    """Published name -> name in the model, or None; no two in one place."""
    asked = set(names.values())
    parts = {name: at.groups() for name in asked if (at := PUBLISHED.fullmatch(name))}
    neurons = {path for path, kernel, _ in parts.values() if kernel}
    places: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for published, name in names.items():
        path, kernel, direct = parts.get(name, (None, None, None))
        if kind.neuron is PMSN and path in neurons:
            own = kernel or direct
            candidates = (path + own, f"{path}neuron.{own}", path.removesuffix("neuron.") + own)
            fitting = [c for c in candidates if c in targets and targets[c].neuron is not None]
        else:
            shorter = without_containers(name, asked) if kind.neuron is MSF else None
            fitting = [c for c in (name, shorter) if c in targets]
        place = places[published] = fitting[0] if fitting else None
        if place is not None:
            if place in taken:
                raise ValueError(
                    f"{taken[place]} and {published} both belong to {place} of the model: rename one"
                )
            taken[place] = published
    return places


def without_containers(name: str, names: Collection[str]) -> str | None:
    """``name`` without the part that a container of the MSF code adds before the last; None if there is none."""
    *path, part, own = ["", "", *name.split(".")]
    shorter = ".".join([*path[2:], own])
    return shorter if path[2:] and part in CONTAINERS and shorter not in names else None


def published_name(
    ours: str, targets: Mapping[str, Target], kind: Source, rename: Mapping[str, str | None]
) -> str:
    """Under which published name an entry of the model was looked for."""
    name = ours
    if targets[ours].neuron is not None:
        path, dot, own = ours.rpartition(".")
        path = (
            path.removesuffix("neuron").removesuffix(".") if path.split(".")[-1] == "neuron" else path
        ) + dot
        name = path.removeprefix(".") + (own if own == "D" else f"kernel.{own}")
    for old, new in rename.items():
        if new is not None and (back := swap_prefix(name, new, old)) is not None:
            return back
    return name
