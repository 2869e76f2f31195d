"""What an adapter says about its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.swap.sites import find, readings_of
from msf_pmsn_plugins.swap.spec import OF_A_PLAN, Reading, Rule, RuleKey, Target, applies, require_built
from msf_pmsn_plugins.words import teaching_call

__all__ = ["ATTENTION", "CONVOLUTIONS", "NORMS", "RATES", "Recipe"]

SiteRule = Target | Rule

# What several recipes say.
ATTENTION = (
    "Attention multiplies spikes: with counts 0..D the products q(k^T v) reach D^3 while scale and threshold stay "
    "tuned to binary spikes; expect to lower the learning rate, or keep D small at the attention sites."
)
RATES = (
    "match_rates on a few batches: the thresholds, 0.5 behind the attention and 1.0 elsewhere, were chosen for binary "
    "spikes of the old neuron."
)
NORMS = (
    "match_norms on a few batches: what reaches a neuron comes from a batch norm, whose stored statistics are those of "
    "binary spikes."
)
# Convolutional nets: [N, C, H, W] or [N, C] in every step, whatever the sizes.
CONVOLUTIONS = {"re:.*": Rule(channel_dim=1)}


@dataclass(frozen=True)
class Recipe:
    """A published recipe, as far as a swap cannot see it in the model.

    Args:
        name: its key.
        source: paper and repository.
        models: import paths of constructors that build it from installed packages.
        rules: for single sites, as in :func:`msf_pmsn_plugins.swap.plan`, whatever the target.
        advice: what to know before training the swapped model.
        classes: names of the model's class, or of one of its parents, by which it is recognised.
        paths: regular expressions; each must match the whole path of some module, or it is another recipe.
        holds: class names; some module must be of each, or it is another recipe.
        has: attributes; some module must have all of them, and so must every neuron that ``readings`` is for.
        pmsn_rules: rules that hold where the target is a PMSN; they go before ``rules``.
        readings: how to read neurons of the recipe's own, by class name.
        keys: published checkpoint entry -> entry of another construction of the same network, as regular expression
            and replacement. :func:`msf_pmsn_plugins.swap.load_published` tries them on what has no place as it is.
        training: published settings by data set, with the names of the recipe's own scripts.
        calibration: what to calibrate after the swap, and on what.
        legacy: what ``seq_to_ann`` the published files need under :func:`msf_pmsn_plugins.swap.legacy_imports`.
    """

    name: str
    source: str
    models: tuple[str, ...] = ()
    rules: Mapping[Any, SiteRule] = field(default_factory=dict)
    advice: str = ""
    classes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    pmsn_rules: Mapping[Any, SiteRule] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibration: str = ""
    legacy: str | None = None

    @property
    def demands(self) -> int:
        """How much it says about the modules of a model."""
        return len(self.paths) + len(self.holds) + len(self.has)

    def fits(self, model: nn.Module) -> bool:
        """Whether ``model`` is built by this recipe: its class, all of ``paths``, of ``holds`` and of ``has``."""
        if not {cls.__name__ for cls in type(model).__mro__} & set(self.classes):
            return False
        names = [name for name, _ in model.named_modules()]
        held = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
        matched = all(any(re.fullmatch(path, name) for name in names) for path in self.paths)
        return matched and set(self.holds) <= held and any(map(self._has_all, model.modules()))

    def _has_all(self, module: nn.Module) -> bool:
        return all(hasattr(module, name) for name in self.has)

    def classes_in(self, model: nn.Module) -> dict[type, Reading]:
        """The recipe's own neuron classes in ``model``, and how to read them."""
        kinds = {type(module) for module in model.modules() if self._has_all(module)}
        return {cls: self.readings[cls.__name__] for cls in kinds if cls.__name__ in self.readings}

    def rules_for(
        self, model: nn.Module, target: Target, given: Mapping[Any, SiteRule] | None = None
    ) -> dict[RuleKey, SiteRule]:
        """``given``, then those rules of the recipe that are the first to name some neuron of ``model``.

        A plan refuses a rule that names none.
        """
        own = {**self.rules, **(self.pmsn_rules if isinstance(target, swap.PMSN) else {})}
        own = dict(sorted(own.items(), key=lambda item: item[0] not in self.pmsn_rules))
        rules: dict[RuleKey, SiteRule] = {**(given or {})}
        found = find(model, self.classes_in(model))
        open_ = [f for f in found if not any(applies(key, f.path, f.module) for key in rules)]
        for key, rule in own.items():
            named = [f for f in open_ if applies(key, f.path, f.module)]
            if named and key not in rules:
                rules[key] = rule
                open_ = [f for f in open_ if f not in named]
        return rules

    @teaching_call("recipe.plan", OF_A_PLAN, swap.plan)
    def plan(self, model: nn.Module, example_input: Any, target: Any, **options: Any) -> swap.Plan:
        """:func:`msf_pmsn_plugins.swap.plan` with this recipe's rules and neuron classes after those given."""
        require_built(model)
        own = readings_of(options.pop("neuron_classes", ()))
        options["neuron_classes"] = {**self.classes_in(model), **own}
        options["rules"] = self.rules_for(model, target, options.pop("rules", None))
        return swap.plan(model, example_input, target, **options)
