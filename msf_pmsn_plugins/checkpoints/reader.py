"""Loading: every entry is checked before any is written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..neurons.nodes import is_node
from ..neurons.pmsn import PARAMETERS, PER_CHANNEL
from .files import read_state_dict
from .names import Target, inner_model, places_of, published_name, rename_entries, strip_prefixes, targets_of
from .report import Incomplete, Mismatch, Report
from .sources import SOURCES, Source, recognise

# Entries of a snnTorch neuron that no published file has.
HOST_ENTRIES = ("graded_spikes_factor",)


def read(
    file: str | os.PathLike[str] | IO[bytes] | Mapping[str, Any],
    model: nn.Module,
    source: str | None = None,
    strict: bool = True,
    rename: Mapping[str, str | None] | None = None,
    weights: str | None = None,
) -> Report:
    """Load a published checkpoint into ``model``, in place, and report.

    ``model`` has the published layout, with neurons of this package (bare, or in a node of either framework) in place
    of the published ones; a bare neuron will do for a file of one. A PMSN without channels takes them from the file.
    A file is read by ``torch.load(.., weights_only=True)``: nothing in it is executed.

    Args:
        file: a path, an open binary file, or what one holds: a state dict, or a dict with one inside.
        source: a key of :data:`SOURCES`; None recognises it by the names, or raises. ``"pmsn"`` and ``"msf"`` are for
            networks of your own that hold the published neuron.
        strict: raise if any entry is missing, unexpected or does not fit, before anything is loaded. False loads what
            fits, and warns.
        rename: prefixes of published names (whole parts of them, before the neuron's own are translated) to those in
            your model; the longest wins, ``""`` is all names, None leaves them out.
        weights: the entry of the file that holds the weights, if there are several.

    Returns:
        the report. Settings that differ from the published ones are in it and are warned about.

    Raises:
        Incomplete: with ``strict``, a ValueError with all differences, both names each, and the report.
        ValueError: not a checkpoint of that source, an unsafe, damaged or unknown file, a rename that renames nothing.
    """
    model = inner_model(model)
    state, path = read_state_dict(file, weights)
    targets = dict(targets_of(model))
    state, prefix = strip_prefixes(state, targets)
    source = recognise(source, state)
    kind = SOURCES[source]
    renamed, left_out = rename_entries(state, rename or {})
    places = places_of(renamed, targets, kind)
    unused = kind.unused(state)

    fit = check_entries(state, places, targets)
    found = set(places.values())
    homeless = [published for published, ours in places.items() if ours is None]
    report = Report(
        source=source,
        weights=path + (f" without the prefix {prefix!r}" if prefix else ""),
        loaded=fit.loaded,
        missing={
            ours: published_name(ours, targets, kind, rename or {})
            for ours in targets
            if ours not in found and ours.split(".")[-1] not in HOST_ENTRIES
        },
        unexpected=tuple(name for name in homeless if name not in unused),
        mismatched=tuple(fit.mismatched),
        unused=tuple(name for name in homeless if name in unused),
        left_out=left_out,
        converted=tuple(fit.converted),
        different=tuple(different_settings(model, kind)),
        not_stored=kind.notes,
    )
    if strict and not report.ok:
        raise Incomplete(report)
    if not fit.loaded:
        raise ValueError(f"no entry of the file has a place in the model.\n{report}")
    write_entries(model, {ours: state[published] for published, ours in fit.loaded.items()}, targets)
    if not report.ok or report.different:
        warnings.warn(str(report), stacklevel=2)
    return report


@dataclass
class Fit:
    """Published name -> name in the model of what can be loaded; what cannot, and what changes its dtype."""

    loaded: dict[str, str] = field(default_factory=dict)
    mismatched: list[Mismatch] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)


def check_entries(
    state: Mapping[str, Tensor], places: Mapping[str, str | None], targets: Mapping[str, Target]
) -> Fit:
    """Every entry that has a place, against what is there."""
    fit = Fit()
    for published, ours in places.items():
        if ours is None:
            continue
        if why := misfit(published, ours, state, places, targets):
            fit.mismatched.append(Mismatch(published, ours, why))
            continue
        fit.loaded[published] = ours
        dtype = targets[ours].tensor.dtype
        if state[published].dtype != dtype:
            fit.converted.append(f"{ours}: {state[published].dtype} -> {dtype}")
    return fit


def misfit(
    published: str,
    ours: str,
    state: Mapping[str, Tensor],
    places: Mapping[str, str | None],
    targets: Mapping[str, Target],
) -> str:
    """Why an entry cannot be loaded; empty if it can."""
    given, (expected, neuron) = state[published], (targets[ours].tensor, targets[ours].neuron)
    if (
        given.is_floating_point() != expected.is_floating_point()
        or given.is_complex() != expected.is_complex()
    ):
        return f"the file has {given.dtype}, the model {expected.dtype}"
    if not torch.isfinite(given).all():
        return "the file has values that are not finite"
    if neuron is None:
        lazy = isinstance(expected, UninitializedParameter | UninitializedBuffer)
        shape = given.shape if lazy else expected.shape
    else:
        own = ours.rsplit(".", 1)[-1]
        channels = neuron.channels or channels_of(ours.removesuffix(own), state, places)
        shape = torch.Size((channels,) if own in PER_CHANNEL else (channels, neuron.modes))
    if given.shape == shape:
        return ""
    why = f"the file has {tuple(given.shape)}, the model {tuple(shape)}"
    if neuron is not None and given.dim() == len(shape):
        if given.shape[0] != shape[0]:
            why += f"; build the neuron with channels={given.shape[0]}"
        elif neuron.tied:
            why += "; load into a neuron with tied=False, then call its tie()"
        else:
            why += f"; build the neuron with compartments={given.shape[1] + 1}"
    return why


def channels_of(path: str, state: Mapping[str, Tensor], places: Mapping[str, str | None]) -> int:
    """The channels of the neuron at ``path`` by its entries in the file: those of D, else of the first one."""
    published = {ours: name for name, ours in places.items() if ours is not None}
    given = [state[published[path + own]] for own in ("D", *PARAMETERS) if path + own in published]
    return given[0].shape[0] if given[0].dim() else 0


def different_settings(model: nn.Module, kind: Source) -> Iterator[str]:
    """Settings that are not the published ones, and by whom."""
    nodes = {id(m.neuron): m for m in model.modules() if is_node(m)}
    neurons = [(path, module) for path, module in model.named_modules() if isinstance(module, kind.neuron)]
    if not neurons:
        yield f"the model holds no {kind.neuron.__name__}"
    differing: dict[tuple[str, str], list[str]] = {}
    for path, neuron in neurons:
        # a node keeps what its host may change, and hands it over when it is called
        if sync_settings := getattr(nodes.get(id(neuron)), "sync_settings", None):
            sync_settings(torch.get_default_dtype())
        for name, published in kind.settings.items():
            own = getattr(neuron, name)
            if isinstance(own, Tensor) or own != published:
                differing.setdefault((name, repr(own)), []).append(path or "the neuron")
    for (name, own), paths in differing.items():
        yield f"{name}: published {kind.settings[name]!r}, here {own} in {', '.join(paths)}"


def write_entries(model: nn.Module, entries: dict[str, Tensor], targets: Mapping[str, Target]) -> None:
    """Load entries of the model; a PMSN without channels takes them from its own."""
    for ours, value in entries.items():
        neuron = targets[ours].neuron
        if neuron is not None and neuron.channels is None:
            neuron.materialize(value.shape[0])
    left = model.load_state_dict(entries, strict=False)
    if left.unexpected_keys:
        raise RuntimeError(f"the model did not take {left.unexpected_keys}")
