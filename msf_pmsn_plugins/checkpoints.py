"""Read the state dicts that the published PMSN and MSF code saves.

``read(file, model)`` renames the published entries to those of ``model``, checks every one of them, loads, and reports.
The names are facts read in the published code; see :data:`SOURCES` for what each script saves, and for what it does
not save and you must set yourself.

In the PMSN code a neuron at ``<path>`` holds ``<path>.D`` and the other seven parameters under ``<path>.kernel``. Here
they are all held by a :class:`~msf_pmsn_plugins.neurons.PMSN`, at ``<path>`` or, inside a node, at ``<path>.neuron``.
The MSF neuron has no parameters: its files hold convolutions, norms and linear layers only.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .neurons import MSF, PMSN, Neuron
from .neurons.pmsn.module import PARAMETERS, PER_CHANNEL

__all__ = ["SOURCES", "Incomplete", "Mismatch", "Report", "Source", "read"]


# What is published


def _last_convolutions(names: Collection[str]) -> set[str]:
    """The convolution after the last neuron of each stage: computed and thrown away by the published forward."""
    found: dict[str, int] = {}
    for name in names:
        if at := re.match(r"(linear_layers2?)\.(\d+)\.", name):
            found[at[1]] = max(int(at[2]), found.get(at[1], 0))
    ends = tuple(f"{stage}.{last}." for stage, last in found.items())
    return {name for name in names if name.startswith(ends)} if ends else set()


def _none(names: Collection[str]) -> set[str]:
    return set()


@dataclass(frozen=True)
class Source:
    """One published script: how to know its state dict, and what the state dict leaves open.

    ``needs`` and ``lacks`` are patterns of names that must and must not occur. ``settings`` are the attributes that the
    published neurons have, ``notes`` what else a file does not hold; ``unused`` finds entries that the published
    forward pass never uses, which a model may lack.
    """

    neuron: type[Neuron]
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unused: Callable[[Collection[str]], set[str]] = _none

    def fits(self, names: Collection[str]) -> bool:
        return not self.lacking(names) and not any(re.match(p, n) for p in self.lacks for n in names)

    def lacking(self, names: Collection[str]) -> list[str]:
        """The patterns that no name matches."""
        return [pattern for pattern in self.needs if not any(re.match(pattern, name) for name in names)]


_PMSN = {
    "v_threshold": 1.0,
    "coeff": 1.0,
    "reset_mode": "floor",
    "burst": False,
    "context": "local",
    "dt_scale": 1.0,
}
_MSF = {
    "thresholds": [1.0, 2.0, 3.0, 4.0],
    "decay": 0.25,
    "input_scale": 1.0,
    "charge": ("decay", "decay"),
    "v_reset": 0.0,
    "reset_mode": "hard",
}
_TRIANGLE = "the threshold and the surrogate (triangle, half-width 1 V) are constants of the code"
_RESIDUAL = "spikes are added to those of the neurons before; T and the order of the pixels are the data's"
_FLAGS = (
    "coeff and the reset are flags of the script: the published run is --reset --coeff 0.2. Without --reset it is "
    "reset_mode='none', with --cumsum and without --reset 'cumulative'"
)
_COUNTS = "thresholds, decay and surrogate (rectangular, half-width 0.5) are constants of the code"

SOURCES: dict[str, Source] = {
    "pmsn": Source(
        PMSN,
        (r"(.*\.)?kernel\.log_dt$",),
        settings={"v_threshold": 1.0, "burst": False, "context": "local", "dt_scale": 1.0},
        notes=(
            _TRIANGLE,
            "coeff and the reset are arguments of the published neuron in one script (CIFAR by columns)",
        ),
    ),
    "pmsn-smnist": Source(
        PMSN,
        (r"encoder\.weight$", r"PMSN_layers\.0\.kernel\.log_dt$", r"decoder\.weight$"),
        (r"PMSN_layers2\.",),
        settings=_PMSN,
        notes=(_TRIANGLE, _RESIDUAL),
    ),
    "pmsn-cifar-pixels": Source(
        PMSN,
        (r"PMSN_layers\.0\.kernel\.log_dt$", r"PMSN_layers2\.0\.kernel\.log_dt$", r"fc1\.weight$"),
        settings=_PMSN,
        notes=(_TRIANGLE, _RESIDUAL),
        unused=_last_convolutions,
    ),
    "pmsn-cifar-columns": Source(
        PMSN,
        (r"static_conv\.0\.weight$", r"conv1\.0\.kernel\.log_dt$", r"fc\.1\.kernel\.log_dt$"),
        settings={**_PMSN, "coeff": 0.2},
        notes=(
            _TRIANGLE,
            _FLAGS,
            "T is 32, the width of the image",
        ),
    ),
    "pmsn-shd": Source(
        PMSN,
        (r"hidden1\.0\.weight$", r"hidden1\.[12]\.kernel\.log_dt$", r"fc\.0\.weight$"),
        settings=_PMSN,
        notes=(_TRIANGLE, "T is 250 bins on [0, 1.4] s; 700 inputs are summed 5 to 1"),
    ),
    "pmsn-imagenet": Source(
        PMSN,
        (r"sn1\.kernel\.log_dt$", r"layer1\.0\.sn1\.kernel\.log_dt$", r"pe$"),
        settings=_PMSN,
        notes=(_TRIANGLE, "T is the first axis of pe, published 4; branches are added (cnf='ADD')"),
    ),
    "msf": Source(MSF, (), settings=_MSF, notes=(_COUNTS,)),
    "msf-cifar10": Source(
        MSF,
        (r"conv1\.0\.0\.weight$", r"layer1\.0\.snn_conv1\.1\.0\.weight$", r"fc\.weight$"),
        (r"layer4\.", r"conv2\.", r"backbone\."),
        settings=_MSF,
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-cifar10-dvs": Source(
        MSF,
        (
            r"conv1\.0\.0\.weight$",
            r"conv2\.0\.0\.weight$",
            r"layer1\.0\.snn_conv1\.1\.0\.weight$",
            r"fc\.weight$",
        ),
        (r"layer4\.",),
        settings=_MSF,
        notes=(_COUNTS, "T is 16"),
    ),
    "msf-imagenet": Source(
        MSF,
        (r"conv1\.0\.0\.weight$", r"layer4\.0\.snn_conv1\.1\.0\.weight$", r"fc\.weight$"),
        settings=_MSF,
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-detection": Source(
        MSF,
        (r"backbone\.backbone\.conv1\.0\.0\.weight$", r"head\.stems\.0\.residual_function\.1\.0\.weight$"),
        settings={**_MSF, "thresholds": [float(d) for d in range(1, 9)]},
        notes=(_COUNTS, "T is 1"),
    ),
    "msf-sleep": Source(
        MSF,
        (r"block1\.0\.0\.weight$", r"block2\.0\.0\.weight$", r"block3\.0\.0\.weight$", r"fc\.weight$"),
        settings=_MSF,
        notes=(
            _COUNTS,
            "T is 30 steps of 100 samples; D, decay and the first threshold are arguments of the script",
        ),
    ),
    "msf-sine": Source(
        MSF,
        (r"fc1\.0\.weight$", r"fc2\.0\.weight$"),
        (r"(?!fc[12]\.0\.(weight|bias)$)",),
        settings={**_MSF, "thresholds": [0.5, 1.5, 2.5, 3.5]},
        notes=(_COUNTS, "T is 300; a file of the LIF network has the same names"),
    ),
}

# Entries of a file that may hold the weights.
WRAPPERS = ("state_dict", "model", "best_net", "model_state_dict", "net", "weights") + (
    "state_dict_ema",
    "model_ema",
    "ema",
)
# Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
# Parts of a name that the MSF code's containers add, and that a model without them lacks.
CONTAINERS = ("0", "bn")
# Entries of a snnTorch neuron that no published file has.
HOST_ENTRIES = ("graded_spikes_factor",)


# What is reported


@dataclass(frozen=True)
class Mismatch:
    """An entry that was found but does not fit."""

    published: str
    ours: str
    why: str

    def __str__(self) -> str:
        return f"{self.published} -> {self.ours}: {self.why}"


@dataclass(frozen=True)
class Report:
    """What :func:`read` did. ``print`` it; :attr:`ok` is False if anything was left over on either side."""

    source: str
    weights: str
    """The entry of the file that was read, and the prefix taken from its names."""
    loaded: dict[str, str]
    """Published name -> name in the model."""
    missing: dict[str, str]
    """Name in the model -> the published name it was looked for under."""
    unexpected: tuple[str, ...]
    """Published names without a place in the model."""
    mismatched: tuple[Mismatch, ...]
    unused: tuple[str, ...]
    """Published names that the model lacks and the published forward pass never uses."""
    left_out: tuple[str, ...]
    """Published names renamed to None."""
    converted: tuple[str, ...]
    """Loaded entries whose dtype changed."""
    different: tuple[str, ...]
    """Settings of the model's neurons that are not the published ones."""
    not_stored: tuple[str, ...]
    """What the file does not say."""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.source}, {self.weights}: {len(self.loaded)} entries loaded"]
        renamed = [f"{a} -> {b}" for a, b in self.loaded.items() if a != b]
        missing = [f"{ours} (looked for as {published})" for ours, published in self.missing.items()]
        for title, entries in (
            ("renamed", renamed),
            ("missing in the file", missing),
            ("unexpected in the file", self.unexpected),
            ("not fitting", self.mismatched),
            ("never used by the published forward pass, and not in the model", self.unused),
            ("left out as asked", self.left_out),
            ("dtype changed", self.converted),
            ("not the published setting", self.different),
            ("not stored in the file, to be set by you", self.not_stored),
        ):
            if entries:
                lines += [f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


class Incomplete(ValueError):
    """The file and the model do not match entry by entry. Nothing was loaded; see :attr:`report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"nothing was loaded, because the file and the model differ. Rename with rename={{published: yours}}, or "
            f"load what fits with strict=False.\n{report}"
        )
        self.report = report


# Reading


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
        ValueError: not a checkpoint of that source, an unsafe or unknown file, a rename that renames nothing.
    """
    model = _inner(model)
    state, path = _unwrap(_load(file), weights)
    targets = dict(_targets(model))
    state, prefix = _strip(state, targets)
    source = _recognise(source, state)
    kind = SOURCES[source]
    renamed, left_out = _rename(state, rename or {})
    places = _places(renamed, targets, kind)
    unused = kind.unused(state)

    loaded: dict[str, str] = {}
    mismatched, converted = [], []
    for published, ours in places.items():
        if ours is None:
            continue
        if why := _misfit(published, ours, state, places, targets):
            mismatched.append(Mismatch(published, ours, why))
        else:
            loaded[published] = ours
            dtype = targets[ours].tensor.dtype
            if state[published].dtype != dtype:
                converted.append(f"{ours}: {state[published].dtype} -> {dtype}")
    found = set(places.values())
    homeless = [published for published, ours in places.items() if ours is None]
    report = Report(
        source=source,
        weights=path + (f" without the prefix {prefix!r}" if prefix else ""),
        loaded=loaded,
        missing={
            ours: _published(ours, targets, kind, rename or {})
            for ours in targets
            if ours not in found and ours.split(".")[-1] not in HOST_ENTRIES
        },
        unexpected=tuple(name for name in homeless if name not in unused),
        mismatched=tuple(mismatched),
        unused=tuple(name for name in homeless if name in unused),
        left_out=left_out,
        converted=tuple(converted),
        different=tuple(_different(model, kind)),
        not_stored=kind.notes,
    )
    if strict and not report.ok:
        raise Incomplete(report)
    if not loaded:
        raise ValueError(f"no entry of the file has a place in the model.\n{report}")
    _write(model, {ours: state[published] for published, ours in loaded.items()}, targets)
    if not report.ok or report.different:
        warnings.warn(str(report), stacklevel=2)
    return report


def _inner(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def _load(file: Any) -> Any:
    if isinstance(file, Mapping):
        return file
    if isinstance(file, nn.Module):
        raise TypeError("read takes a file or a state dict, got a module: pass its state_dict()")
    # Scripts save their arguments beside the weights; a Namespace runs no code.
    harmless: list[Any] = [
        c for c in (argparse.Namespace,) if c not in torch.serialization.get_safe_globals()
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "this file is not a plain checkpoint: it holds objects that may run code when they are read, so it was "
            "refused. If you trust it, read it where that does no harm, save its state dict alone and read that; or, "
            "for harmless types such as NumPy numbers, call read inside torch.serialization.safe_globals([..]).\n"
            f"{error}"
        ) from error


def _unwrap(data: Any, weights: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict inside ``data``, and where it was."""
    path = []
    if weights is not None:
        if not isinstance(data, Mapping) or weights not in data:
            raise ValueError(f"the file has no entry {weights!r}; it holds {_contents(data)}")
        data, path = data[weights], [weights]
    while not _is_state_dict(data):
        found = [key for key in WRAPPERS if isinstance(data, Mapping) and isinstance(data.get(key), Mapping)]
        if not found:
            raise ValueError(
                f"found no state dict: {' / '.join(path) or 'the file'} holds {_contents(data)}. Expected names of "
                "tensors, or an entry with them; name it with weights=.."
            )
        if len(found) > 1:
            raise ValueError(
                f"the file holds several entries with weights, {found}: choose one with weights=.."
            )
        path.append(found[0])
        data = data[found[0]]
    return dict(data), " / ".join(path) or "state dict"


def _is_state_dict(data: Any) -> bool:
    return (
        isinstance(data, Mapping)
        and bool(data)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in data.items())
    )


def _contents(data: Any) -> str:
    if not isinstance(data, Mapping):
        return f"a {type(data).__name__}"
    return ", ".join(f"{key!r} ({type(value).__name__})" for key, value in data.items()) or "nothing"


def _strip(state: dict[str, Tensor], targets: Collection[str]) -> tuple[dict[str, Tensor], str]:
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


def _recognise(source: str | None, names: Collection[str]) -> str:
    special = {name: kind for name, kind in SOURCES.items() if "-" in name}
    alike = [name for name, kind in special.items() if kind.fits(names)]
    if source is None:
        if len(alike) == 1:
            return alike[0]
        raise ValueError(
            f"the names in this file are not those of one published script (alike: {', '.join(alike) or 'none'}). Give "
            "source=..: 'pmsn' or 'msf' for a network of your own that holds the published neuron, or one of "
            f"{', '.join(special)}"
        )
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    if not SOURCES[source].fits(names):
        lacking = SOURCES[source].lacking(names)
        why = (
            f"no name matches {', '.join(lacking)}"
            if lacking
            else "it has names that those files do not have"
        )
        hint = (
            f"It looks like {', '.join(alike)}"
            if alike
            else "Saved by this package? Then use load_state_dict"
        )
        raise ValueError(f"this is no file of {source}: {why}. {hint}")
    return source


def _swap_prefix(name: str, old: str, new: str) -> str | None:
    """``name`` with the leading parts ``old`` replaced by ``new``; None if it does not begin with them."""
    if old and name != old and not name.startswith(old + "."):
        return None
    rest = name[len(old) :].removeprefix(".")
    return ".".join(part for part in (new, rest) if part)


def _rename(
    state: Collection[str], rename: Mapping[str, str | None]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Published name -> name asked for, and the names left out."""
    order = sorted(rename, key=len, reverse=True)
    names, left_out, used = {}, [], set()
    for name in state:
        old = next((o for o in order if _swap_prefix(name, o, "") is not None), None)
        used.add(old)
        new = "" if old is None else rename[old]
        if old is None:
            names[name] = name
        elif new is None:
            left_out.append(name)
        else:
            names[name] = _swap_prefix(name, old, new) or ""
    if idle := [old for old in rename if old not in used]:
        raise ValueError(
            f"rename: no published name begins with {idle}; the first ones are {list(state)[:5]}"
        )
    return names, tuple(left_out)


@dataclass(frozen=True)
class _Target:
    """An entry of the model's state dict."""

    tensor: Tensor
    neuron: PMSN | None
    """The PMSN that owns it."""


def _targets(model: nn.Module) -> Iterator[tuple[str, _Target]]:
    # not state_dict(): that of a PMSN whose channels are not known raises, and hosts add entries
    for path, module in model.named_modules(remove_duplicate=False):
        owned = [*module._parameters.items()]
        owned += [(k, v) for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set]
        for name, tensor in owned:
            if tensor is not None:
                neuron = module if isinstance(module, PMSN) and name in PARAMETERS else None
                yield (f"{path}.{name}" if path else name), _Target(tensor, neuron)


# The path of a published neuron, and the name of its parameter under kernel, or D beside it.
PUBLISHED = re.compile(rf"((?:.*\.)?)(?:kernel\.({'|'.join(n for n in PARAMETERS if n != 'D')})|(D))")


def _places(names: Mapping[str, str], targets: Mapping[str, _Target], kind: Source) -> dict[str, str | None]:
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
            shorter = _without_containers(name, asked) if kind.neuron is MSF else None
            fitting = [c for c in (name, shorter) if c in targets]
        place = places[published] = fitting[0] if fitting else None
        if place is not None:
            if place in taken:
                raise ValueError(
                    f"{taken[place]} and {published} both belong to {place} of the model: rename one"
                )
            taken[place] = published
    return places


def _without_containers(name: str, names: Collection[str]) -> str | None:
    """``name`` without the part that a container of the MSF code adds before the last; None if there is none."""
    *path, part, own = ["", "", *name.split(".")]
    shorter = ".".join([*path[2:], own])
    return shorter if path[2:] and part in CONTAINERS and shorter not in names else None


def _misfit(
    published: str,
    ours: str,
    state: Mapping[str, Tensor],
    places: Mapping[str, str | None],
    targets: Mapping[str, _Target],
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
        channels = neuron.channels or _channels(ours.removesuffix(own), state, places)
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


def _channels(path: str, state: Mapping[str, Tensor], places: Mapping[str, str | None]) -> int:
    """The channels of the neuron at ``path`` by its entries in the file: those of D, else of the first one."""
    published = {ours: name for name, ours in places.items() if ours is not None}
    given = [state[published[path + own]] for own in ("D", *PARAMETERS) if path + own in published]
    return given[0].shape[0] if given[0].dim() else 0


def _published(
    ours: str, targets: Mapping[str, _Target], kind: Source, rename: Mapping[str, str | None]
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
        if new is not None and (back := _swap_prefix(name, new, old)) is not None:
            return back
    return name


def _different(model: nn.Module, kind: Source) -> Iterator[str]:
    """Settings that are not the published ones, and by whom."""
    holders = {id(m.neuron): m for m in model.modules() if isinstance(getattr(m, "neuron", None), Neuron)}
    neurons = [(path, module) for path, module in model.named_modules() if isinstance(module, kind.neuron)]
    if not neurons:
        yield f"the model holds no {kind.neuron.__name__}"
    differing: dict[tuple[str, str], list[str]] = {}
    for path, neuron in neurons:
        # what stands for a host's surrogate object depends on the dtype
        if sync_settings := getattr(holders.get(id(neuron)), "sync_settings", None):
            sync_settings(torch.get_default_dtype())
        for name, published in kind.settings.items():
            own = getattr(neuron, name)
            if isinstance(own, Tensor) or own != published:
                differing.setdefault((name, repr(own)), []).append(path or "the neuron")
    for (name, own), paths in differing.items():
        yield f"{name}: published {kind.settings[name]!r}, here {own} in {', '.join(paths)}"


def _write(model: nn.Module, entries: dict[str, Tensor], targets: Mapping[str, _Target]) -> None:
    for ours, value in entries.items():
        neuron = targets[ours].neuron
        if neuron is not None and neuron.channels is None:
            neuron.materialize(value.shape[0])
    left = model.load_state_dict(entries, strict=False)
    if left.unexpected_keys:
        raise RuntimeError(f"the model did not take {left.unexpected_keys}")
