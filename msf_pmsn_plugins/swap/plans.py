"""A planned swap: the replacing itself, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .around import Around
from .layout import Layout
from .printing import by_reason, count, table_html, text
from .replace import replace
from .site import RESOLVED, SWAPPED, Site, build, plain
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
    keys: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _new: dict[nn.Module, nn.Module] = field(default_factory=dict, repr=False)

    def apply(self) -> nn.Module:
        """Replace the neurons in place and return the model. Nothing is replaced if one cannot be.

        A model that is itself a neuron cannot be replaced in place: the new neuron is returned. The plan keeps the old
        neurons for :meth:`undo`.

        Raises:
            SwapError: a verdict is unresolved, no neuron would be swapped, or the plan was applied already.
        """
        todo = self._checked()
        self.keys = {key: tuple(value.shape) for key, value in self.model.state_dict().items()}
        built: dict[nn.Module, nn.Module] = {}
        for site in sorted(todo, key=lambda s: s.clock is not None):  # clocks first
            if site.module not in built:
                built[site.module] = build(site, built)
        self.model = self._put(todo, built)
        self._new, self.applied = built, True
        return self.model

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
        old = {site.module: _moved(site.module, self._new[site.module]) for site in todo}
        self.model = self._put(todo, old)
        wrappers = {node for node in self._new.values() if isinstance(node, Around)}
        for module in self.model.modules():  # clocks that stayed
            hooks = module._forward_pre_hooks
            for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) in wrappers]:
                del hooks[key]
        self._new, self.applied = {}, False
        return self.model

    def _put(self, todo: list[Site], new: dict[nn.Module, nn.Module]) -> nn.Module:
        """Set ``new[site.module]`` at every site's path."""
        model = next((new[s.module] for s in todo if not s.path), self.model)
        replace(model, {site.path: new[site.module] for site in todo})
        for host in {s.host for s in todo if s.host is not None}:
            host.after_swap(model)
        return model

    def _checked(self) -> list[Site]:
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

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, fit for JSON."""
        return {
            "dynamics": self.dynamics,
            "input": plain(vars(self.layout)),
            "warnings": list(self.warnings),
            "sites": [s.to_dict() for s in self.sites],
        }

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return table_html(self)


def _moved(old: nn.Module, new: nn.Module) -> nn.Module:
    """``old`` in the mode of ``new``, and on its device if both hold tensors."""
    for mine in (*old.parameters(), *old.buffers()):
        for its in (*new.parameters(), *new.buffers()):
            if mine.device != its.device:
                old.to(its.device)
            return old.train(new.training)
    return old.train(new.training)
