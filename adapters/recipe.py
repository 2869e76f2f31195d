"""What an adapter says about its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msf_pmsn_plugins.swap import Target

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A published recipe, as far as a swap cannot see it in the model.

    Args:
        name: its key.
        source: paper and repository.
        models: import paths of constructors that build it from installed packages.
        rules: per-site targets for :func:`msf_pmsn_plugins.swap.plan`.
        advice: what to know before training the swapped model.
    """

    name: str
    source: str
    models: tuple[str, ...] = ()
    rules: Mapping[str, Target] = field(default_factory=dict)
    advice: str = ""
