"""Published weights into a model, before or after its neurons are swapped."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .. import checkpoints
from ..checkpoints import files, names
from ..neurons import PMSN, Neuron
from ..neurons.nodes import is_node
from .spec import require_built

__all__ = ["Loaded", "load_published"]


@dataclass(frozen=True)
class Loaded(checkpoints.Report):
    """What :func:`load_published` did. ``print`` it; :attr:`ok` is False if anything was left over on either side."""

    new: tuple[str, ...]
    """Entries of swapped-in neurons that no published file has: they keep their values."""
    reshaped: tuple[str, ...]
    """Single numbers stored in another shape."""

    def __str__(self) -> str:
        lines = [
            super().__str__().replace("never used by the published forward pass, and not in the model", GONE)
        ]
        for title, entries in (
            ("of the new neurons, left as they are", self.new),
            ("reshaped", self.reshaped),
        ):
            if entries:
                lines += [f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


GONE = "of neurons that were swapped out"


def load_published(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike[str] | IO[bytes] | Mapping[str, Any],
    recipe: Any = None,
    *,
    rename: Mapping[str, str | None] | None = None,
    weights: str | None = None,
    strict: bool = True,
) -> Loaded:
    """Load a published checkpoint into ``model``, in place, and report; the neurons may be swapped already or not.

    Convolutions, norms and linear layers keep their names in a swap, so either order gives the same weights. A number
    of an old neuron, learned or not, goes to the one that keeps it (PLIF's ``w``; ``beta``, ``threshold`` and reset of
    ``Leaky``, unless the swap gave others) or is reported as gone; the parameters of a new PMSN are in no published
    file and stay. Nothing in a file is executed (``weights_only=True``).

    Args:
        model: a model with the published layout, or one that ``recipe`` translates to.
        path_or_state_dict: a path, an open binary file, or what one holds. The weights may lie inside ``state_dict``,
            ``model`` and the like, and their names begin with ``module.`` or ``_orig_mod.``.
        recipe: a :class:`~msf_pmsn_plugins.adapters.Recipe` or the name of one: its ``keys`` translate entries that
            have no place as they are, such as torchvision's ResNet into SEW ResNet.
        rename: prefixes of published names (whole parts) to those in your model; None leaves them out, as
            ``{"fc": None}`` for another number of classes.
        weights: the entry of the file that holds the weights, if there are several.
        strict: raise if any entry is missing, unexpected or does not fit, before anything is loaded. False loads what
            fits, and warns.

    Raises:
        msf_pmsn_plugins.checkpoints.Incomplete: with ``strict``, a ValueError with all differences.
        ValueError: not a checkpoint, an unsafe one, a rename that renames nothing, or nothing that fits.
        KeyError: an unknown recipe.
        TypeError: a model that is none.
    """
    require_built(model)
    model = names.inner_model(model)
    state, path = files.read_state_dict(path_or_state_dict, weights)
    targets = {name: target.tensor for name, target in names.targets_of(model)}
    state, prefix = names.strip_prefixes(state, targets)
    renamed, left_out = names.rename_entries(state, rename or {})
    owners = _neurons(model)
    entries = _Entries(state, targets, owners, _keys(recipe), _StockEntries(model, owners))
    for published, name in renamed.items():
        entries.sort(published, name)
    report = entries.report(
        getattr(recipe, "name", None) or recipe or "published weights",
        path + (f" without the prefix {prefix!r}" if prefix else ""),
        left_out,
    )
    if strict and not report.ok:
        raise checkpoints.Incomplete(report)
    if not report.loaded:
        raise ValueError(f"no entry of the file has a place in the model.\n{report}")
    entries.load()
    if not report.ok:
        warnings.warn(str(report), stacklevel=2)
    return report


class _Entries:
    """The entries of a file: each to its place in the model, or to a reason why it has none."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        owners: Mapping[str, nn.Module],
        keys: Mapping[str, str],
        stock: _StockEntries,
    ) -> None:
        self.state, self.targets, self.owners, self.keys, self.stock = state, targets, owners, keys, stock
        self.places: dict[str, str] = {}  # name in the model -> in the file
        self.unexpected: list[str] = []
        self.gone: list[str] = []
        self.loaded: dict[str, str] = {}  # name in the file -> in the model: what fits

    def place(self, name: str) -> str | None:
        return _place(name, self.targets, self.owners, self.keys)

    def sort(self, published: str, name: str) -> None:
        """Find the place of one entry, which the model may call ``name``."""
        place = self.place(name)
        if place is not None:
            if place in self.places:
                raise ValueError(
                    f"{self.places[place]} and {published} both belong to {place} of the model: rename one"
                )
            self.places[place] = published
        elif self.stock.takes(name, self.state[published]):
            self.stock.published[name] = published
        elif _owner(name, self.owners) is not None:
            self.gone.append(published)
        else:
            self.unexpected.append(published)

    def report(self, source: str, weights: str, left_out: tuple[str, ...]) -> Loaded:
        """What of the entries fits, and all that does not."""
        mismatched, converted, reshaped = [], [], []
        for ours, published in self.places.items():
            given, expected = self.state[published], self.targets[ours]
            if why := _misfit(given, expected):
                mismatched.append(checkpoints.Mismatch(published, ours, why))
                continue
            self.loaded[published] = ours
            if given.dtype != expected.dtype:
                converted.append(f"{ours}: {given.dtype} -> {expected.dtype}")
            if given.shape != expected.shape:
                reshaped.append(f"{ours}: {tuple(given.shape)} -> {tuple(expected.shape)}")
        stock = self.stock
        for name, why in stock.misfits().items():
            mismatched.append(checkpoints.Mismatch(stock.published.pop(name), name, why))
        absent = self._absent()
        new = [ours for ours in absent if self._is_new(ours)]
        meant = {self.place(name) for name in left_out}  # what was left out on purpose is not missing
        return Loaded(
            source=source,
            weights=weights,
            loaded={**self.loaded, **{published: name for name, published in stock.published.items()}},
            missing={ours: ours for ours in absent if ours not in new and ours not in meant},
            unexpected=tuple(self.unexpected),
            mismatched=tuple(mismatched),
            unused=tuple(self.gone),
            left_out=left_out,
            converted=tuple(converted),
            different=(),
            not_stored=(),
            new=tuple(new),
            reshaped=tuple(reshaped),
        )

    def _absent(self) -> list[str]:
        """Tensors of the model that no entry of the file gives its values."""
        settled = self.stock.settled(self.targets)
        return [ours for ours in self.targets if ours not in self.places and ours not in settled]

    def _is_new(self, ours: str) -> bool:
        return _owner(ours, self.owners) in self.stock.overruled or _is_new(ours, self.owners)

    @torch.no_grad()
    def load(self) -> None:
        """Copy what fits."""
        for published, ours in self.loaded.items():
            self.targets[ours].copy_(self.state[published].reshape(self.targets[ours].shape))
        self.stock.load()


class _StockEntries:
    """Entries of stock neurons that no tensor of the model has the name of: what our nodes take over of them."""

    def __init__(self, model: nn.Module, owners: Mapping[str, nn.Module]) -> None:
        self.nodes: dict[str, Any] = {}
        self.entries: dict[str, dict[str, Tensor]] = {}  # by site, then by the name in the node
        self.published: dict[str, str] = {}  # name in the model -> in the file
        self.overruled: set[str] = set()  # sites with entries that the swap gave other values
        for site, held in owners.items():
            inner = model.get_submodule(site).modules()
            node = next((m for m in inner if is_node(m) and m.neuron is held), None)
            if hasattr(node, "stock_entries"):
                self.nodes[site] = node

    def takes(self, name: str, value: Tensor) -> bool:
        """Whether a node takes the entry ``name``; it is noted if so."""
        site, _, own = name.rpartition(".")
        if site not in self.nodes or own not in self.nodes[site].stock_entries():
            self.overruled.add(site)
            return False
        self.entries.setdefault(site, {})[own] = value
        return True

    def misfits(self) -> dict[str, str]:
        """Names that their node refuses, tried on a copy, and why; they are left out from here on."""
        wrong = {}
        for site, entries in self.entries.items():
            for own in list(entries):
                try:
                    copy.deepcopy(self.nodes[site]).load_state_dict({own: entries[own]}, strict=False)
                except RuntimeError as error:
                    wrong[f"{site}.{own}"] = str(error).splitlines()[-1].strip()
                    del entries[own]
        return wrong

    def settled(self, targets: Mapping[str, Tensor]) -> set[str]:
        """Our own entries that are given their values by these."""
        own = {
            (site, ours)
            for site, entries in self.entries.items()
            for name in entries
            for ours in self.nodes[site].stock_entries()[name]
        }
        return {t for t in targets if (_owner(t, self.nodes), t.rpartition(".")[2]) in own}

    def load(self) -> None:
        for site, entries in self.entries.items():
            self.nodes[site].load_state_dict(entries, strict=False)


def _keys(recipe: Any) -> Mapping[str, str]:
    """The key map of a recipe, given as one or by its name in the entry-point group."""
    if recipe is None:
        return {}
    if isinstance(recipe, str):
        points = {e.name: e for e in entry_points(group="msf_pmsn_plugins.recipes")}
        if recipe not in points:
            raise KeyError(f"unknown recipe {recipe!r}; known: {', '.join(sorted(points))}")
        recipe = points[recipe].load()
    return recipe.keys


def _neurons(model: nn.Module) -> dict[str, nn.Module]:
    """Our neurons by the path of what stands at the site: the outermost module with nothing else inside."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Neuron):
            site = path
            while (outer := site.rpartition(".")[0]) and _only(model.get_submodule(outer), module):
                site = outer
            found[site] = module
    return found


def _only(module: nn.Module, neuron: nn.Module) -> bool:
    """Whether ``module`` holds ``neuron`` and no tensors but the neuron's and those of a host's node around it."""
    inner = [m for m in module.modules() if isinstance(m, Neuron)]
    node = any(is_node(m) and m.neuron is neuron for m in module.modules())
    return inner == [neuron] and node and not any(module.parameters(recurse=False))


def _owner(name: str, owners: Mapping[str, nn.Module]) -> str | None:
    """The site whose neuron an entry belongs to."""
    return next((site for site in owners if name.startswith(f"{site}.")), None)


def _place(
    name: str, targets: Mapping[str, Tensor], owners: Mapping[str, nn.Module], keys: Mapping[str, str]
) -> str | None:
    """Where an entry belongs in the model: as it is, translated, or deeper inside a swapped neuron."""
    candidates = [name, *(re.sub(old, new, name) for old, new in keys.items() if re.fullmatch(old, name))]
    for candidate in candidates:
        if candidate in targets:
            return candidate
        site = _owner(candidate, owners)
        own = candidate.rpartition(".")[2]
        if site is not None and own in owners[site]._parameters:
            return next(
                t for t in targets if t.startswith(f"{site}.") and targets[t] is owners[site]._parameters[own]
            )
    return None


def _is_new(ours: str, owners: Mapping[str, nn.Module]) -> bool:
    """Whether an entry is one that only the new neuron has."""
    site = _owner(ours, owners)
    if site is None:
        return False
    return isinstance(owners[site], PMSN) or ours.rpartition(".")[2] not in owners[site]._parameters


def _misfit(given: Tensor, expected: Tensor) -> str:
    """Why an entry cannot be loaded; empty if it can."""
    if isinstance(expected, UninitializedParameter | UninitializedBuffer):
        return "the model does not know its size yet: run it once before"
    kinds = [(t.is_floating_point(), t.is_complex()) for t in (given, expected)]
    if kinds[0] != kinds[1]:
        return f"the file has {given.dtype}, the model {expected.dtype}"
    if not torch.isfinite(given).all():
        return "the file has values that are not finite"
    if given.shape != expected.shape and not (given.numel() == expected.numel() == 1):
        return f"the file has {tuple(given.shape)}, the model {tuple(expected.shape)}"
    return ""
