"""A planned swap: the replacing itself, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .attached import carry_hooks
from .edits import ABSENT, Edit, make, replacing
from .layout import Layout
from .learned import tied_alike
from .printing import by_reason, count, short, table_html, text
from .saving import FORMAT, layout_from, model_facts, plain, require_model, shapes_of, site_from, site_to_dict
from .site import RESOLVED, SWAPPED, Site, build
from .spec import SwapError

__all__ = ["Plan"]


@dataclass
class Plan:
    """What a swap will do: print it, then :meth:`apply` it; :meth:`undo` takes it back."""

    model: nn.Module
    sites: list[Site]
    dynamics: str
    layout: Layout
    warnings: list[str] = field(default_factory=list)
    applied: bool = False
    new_parameters: int = 0
    keys: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _new: dict[nn.Module, nn.Module] = field(default_factory=dict, repr=False)
    _beside: list[Edit] = field(default_factory=list, repr=False)

    def apply(self) -> nn.Module:
        """Replace the neurons in place and return the model. Nothing is replaced if one cannot be.

        A model that is itself a neuron cannot be replaced in place: the new neuron is returned. The plan keeps the old
        neurons for :meth:`undo`.

        Raises:
            SwapError: a verdict is unresolved, no neuron would be swapped, or the plan was applied already.
        """
        todo = self.check()
        new = self.build()
        beside = self.beside(todo, new)
        values = {
            "keys": shapes_of(self.model),
            "_new": new,
            "_beside": beside,
            "model": self.root(todo, new),
        }
        self._make(todo, [*self.replaced(todo, new), *beside], {**values, "applied": True})
        return self.model

    def build(self) -> dict[nn.Module, nn.Module]:
        """The new neurons by the old ones, one for each module. Nothing is replaced."""
        swapped = [s for s in self.sites if s.verdict in SWAPPED]
        new = {s.module: build(s) for s in swapped}
        tied_alike({s.module: s.host for s in swapped if s.host is not None}, new)
        return new

    def replaced(self, todo: list[Site], new: Mapping[nn.Module, nn.Module]) -> list[Edit]:
        """What puts ``new[site.module]`` at every site's path."""
        return replacing(self.model, {site.path: new[site.module] for site in todo})

    def beside(self, todo: list[Site], new: Mapping[nn.Module, nn.Module]) -> list[Edit]:
        """What gives the new neurons the hooks of the old ones, and their clocks."""
        edits = [edit for old, node in new.items() for edit in carry_hooks(old, node)]
        for site in todo:
            if site.clock is not None:
                earlier = site.clock.module
                # Where it has any, the new one has the very box.
                hooks = earlier._forward_pre_hooks or new.get(earlier, earlier)._forward_pre_hooks
                edits.append(Edit(hooks, RemovableHandle(hooks).id, ABSENT, new[site.module].tick))
        return edits

    def root(self, todo: list[Site], new: Mapping[nn.Module, nn.Module]) -> nn.Module:
        """The model after the swap: another one where it is itself a neuron."""
        return next((new[s.module] for s in todo if not s.path), self.model)

    def undo(self) -> nn.Module:
        """Put the old neurons back, the same objects as they were, and return the model.

        What the new neurons learned is lost; the old ones take over their device and training or evaluation mode.

        Raises:
            SwapError: the plan was not applied, or the model has changed since.
        """
        if not self.applied:
            raise SwapError("this plan was not applied: there is nothing to undo")
        todo = [s for s in self.sites if s.verdict in SWAPPED]
        modules = dict(self.model.named_modules(remove_duplicate=False))
        changed = [s.path for s in todo if modules.get(s.path) is not self._new[s.module]]
        if changed:
            raise SwapError(f"the model has changed since the plan was applied: {', '.join(changed)}")
        for site in todo:
            _follow(site.module, self._new[site.module])
        old = {site.module: site.module for site in todo}
        # A hook that was removed since stays so.
        edits = [
            *self.replaced(todo, old),
            *(edit.inverse for edit in reversed(self._beside) if edit.made),
        ]
        self._make(todo, edits, {"_new": {}, "_beside": [], "model": self.root(todo, old), "applied": False})
        return self.model

    def _make(self, todo: list[Site], edits: list[Edit], values: Mapping[str, Any]) -> None:
        """Edit the model and set ``values`` here, ``applied`` last: all or nothing."""
        self.forget(todo)
        own = vars(self)
        make([*edits, *(Edit(own, name, own[name], value) for name, value in values.items())])

    def forget(self, todo: list[Site]) -> None:
        """Clear what hosts know about the modules of the model: before modules change, nobody resets in between."""
        for host in {s.host for s in todo if s.host is not None}:
            host.after_swap(self.model)

    def check(self) -> list[Site]:
        """The sites to swap; raise SwapError where the plan cannot be carried out."""
        if self.applied:
            raise SwapError("this plan was applied already: make a new plan")
        if self.unresolved:
            lines = [f"  {', '.join(paths)}: {why}" for why, paths in by_reason(self.unresolved).items()]
            raise SwapError(
                f"{len(self.unresolved)} neuron(s) cannot be swapped as planned:\n" + "\n".join(lines)
            )
        todo = [s for s in self.sites if s.verdict in SWAPPED]
        if not todo:
            raise SwapError(f"no neuron would be swapped: {count(self.sites)}")
        modules = dict(self.model.named_modules(remove_duplicate=False))
        if any(modules.get(s.path) is not s.module for s in todo):
            raise SwapError("the model has changed since it was planned: make a new plan")
        return todo

    @property
    def unresolved(self) -> list[Site]:
        """The sites whose verdict must be resolved before the plan can be applied."""
        return [s for s in self.sites if s.verdict not in RESOLVED]

    def all_warnings(self) -> list[str]:
        """Those of the whole model, and those of single sites with the sites that they hold for."""
        found = []
        for line in dict.fromkeys(w for s in self.sites for w in s.warnings):
            paths = [s.name for s in self.sites if line in s.warnings]
            found.append(f"at {short(paths, len(self.sites))}: {line}")
        return found + self.warnings

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, fit for JSON and ``torch.load(weights_only=True)``: see :meth:`from_dict`."""
        return {
            "format": FORMAT,
            "model": self._facts(),
            "dynamics": self.dynamics,
            "input": plain(vars(self.layout)),
            "warnings": list(self.warnings),
            "new_parameters": self.new_parameters,
            "sites": [site_to_dict(s) for s in self.sites],
        }

    def _facts(self) -> dict[str, Any]:
        """Of the model as it was planned for: one that is itself a neuron was replaced whole."""
        if not self.applied:
            return model_facts(self.model)
        root = next((s.module for s in self.sites if not s.path and s.verdict in SWAPPED), self.model)
        return model_facts(root, self.keys)

    @classmethod
    def from_dict(
        cls, model: nn.Module, d: Mapping[str, Any], names: Mapping[str, Callable[..., Any]] | None = None
    ) -> Plan:
        """The plan again, for a model built like the one that was planned for; no example input is needed.

        ``Plan.from_dict(model, d).apply()`` gives the swapped model, whose weights ``load_state_dict`` then loads.
        Nothing is imported that ``d`` names, and nothing in it is executed.

        Args:
            model: not swapped yet.
            d: what :meth:`to_dict` returned, as it is or after JSON.
            names: callables that a file holds by name only, such as a surrogate of your own.

        Raises:
            SwapError: no plan, a plan of another version or for another model, or a name that was not given.
            TypeError: a model that is none.
        """
        if not isinstance(d, Mapping) or "format" not in d:
            raise SwapError("this is no plan: give what plan.to_dict() returned")
        if d["format"] != FORMAT:
            raise SwapError(
                f"this plan has format {d['format']!r}, and this version of msf_pmsn_plugins reads format {FORMAT}: "
                "make the plan anew, or use the version that wrote it"
            )
        require_model(model, d["model"])
        first = next(chain(model.parameters(), model.buffers()), None)
        device = torch.device("cpu") if first is None else first.device
        try:
            sites = [site_from(entry, model, device, names or {}) for entry in d["sites"]]
            by_path = {s.path: s for s in sites}
            for site, entry in zip(sites, d["sites"], strict=True):
                site.clock = None if entry["clock"] is None else by_path[entry["clock"]]
            layout = layout_from(d["input"])
            texts, new_parameters, dynamics = list(d["warnings"]), d["new_parameters"], d["dynamics"]
        except (KeyError, TypeError, AttributeError) as error:
            raise SwapError(f"this plan is damaged: {type(error).__name__}: {error}") from error
        return cls(model, sites, dynamics, layout, texts, new_parameters=new_parameters)

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return table_html(self)


def _follow(old: nn.Module, new: nn.Module) -> None:
    """Put ``old`` in the mode of ``new``, and on its device if both hold tensors."""
    mine = next(chain(old.parameters(), old.buffers()), None)
    its = next(chain(new.parameters(), new.buffers()), None)
    if mine is not None and its is not None and mine.device != its.device:
        old.to(its.device)
    old.train(new.training)
