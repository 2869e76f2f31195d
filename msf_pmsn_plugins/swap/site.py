"""One neuron of a model: what the probe saw of it, and what will become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .around import Around
from .learned import frozen_alike
from .spec import PMSN, Reading, Rule, SwapError, Target

__all__ = ["RESOLVED", "SWAPPED", "Site", "around", "build", "words"]

SWAPPED = ("ok", "single-step")
RESOLVED = (*SWAPPED, "keep", "readout", "never called", "inside")


@dataclass
class Site:
    """One neuron of the model, what the probe saw of it, and what will become of it.

    ``shape`` is the first call's input, time included; ``time_dim`` counts in it, ``channel_dim`` in the per-step
    tensor. Verdicts: ``ok`` and ``single-step`` (called once per step, its state carried) are swapped; ``keep``,
    ``readout`` and ``never called`` stay; ``inside`` lies in a neuron that is replaced whole. All others are
    unresolved, and ``note`` names what would resolve them: ``called more than once``, ``batch folded into time``,
    ``unfolds time itself``, ``no time axis``, ``no time to integrate``, ``no channel axis``, ``ambiguous``, ``non-unit
    output scale``, ``binary only``, ``unsupported dynamics``; and, when the swapped model was run, ``another output``,
    ``never reset``, ``not finite``, ``fails when swapped``.
    """

    path: str
    old: str
    target: Target
    verdict: str = "ok"
    note: str = ""
    warnings: list[str] = field(default_factory=list)
    step_mode: str = "s"
    calls: int = 0
    shape: tuple[int, ...] = ()
    time_dim: int | None = None
    channel_dim: int | tuple[int, ...] | None = None
    channels: int | None = None
    shared_with: list[str] = field(default_factory=list)
    by_rule: bool = False
    unfolds: int | None = None
    gives_output: bool = False
    carried: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)
    module: nn.Module = field(repr=False, default_factory=nn.Identity)
    host: ModuleType | None = field(repr=False, default=None)
    role: str = field(repr=False, default="stock")
    reading: Reading | None = field(repr=False, default=None)
    rule: Rule = field(repr=False, default_factory=Rule)
    device: torch.device = field(repr=False, default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = field(repr=False, default=torch.float32)
    arguments: dict[str, Any] = field(repr=False, default_factory=dict)
    clock: Site | None = field(repr=False, default=None)

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step as the node sees it, batch first."""
        if self.time_dim is None or not self.shape:
            return self.shape
        step = (*self.shape[: self.time_dim], *self.shape[self.time_dim + 1 :])
        if "steps" in self.around:
            return (self.shape[0] // self.around["steps"], *step)
        return (1, *step) if self.around.get("batch") else step

    @property
    def steps(self) -> int:
        """T of the first call; 1 for a single step."""
        if self.time_dim is None:
            return 1
        return self.around.get("steps", self.shape[self.time_dim])

    @property
    def name(self) -> str:
        return self.path or "(the model)"

    def refuse(self, verdict: str, note: str) -> None:
        self.verdict, self.note = verdict, note


def words(value: Any) -> str:
    """A value as a short text without memory addresses."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return f"{value.item():.6g}" if value.numel() == 1 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return repr(float(f"{value:.6g}"))
    text = repr(value)
    name = getattr(value, "__qualname__", type(value).__name__)
    return name.split(".<locals>")[0] if " at 0x" in text else text  # of a closure, what made it


def build(site: Site) -> nn.Module:
    """The new node, inside what it needs around it."""
    assert site.host is not None
    name = "pmsn" if isinstance(site.target, PMSN) else "msf"
    try:
        given = dict(site.arguments)
        # No words of the hosts' constructors.
        amount, rest = given.pop("reset_step", None), given.pop("v_rest", None)
        node: Any = site.host.NODES[name](**given)
        if amount is not None:
            node.neuron.reset_step = amount
        if rest is not None:
            node.set_reset_value("v", rest)
            node.reset()
        node.kept = tuple(site.carried)
        frozen_alike(site.host, site.module, node)
    except ValueError as error:
        raise SwapError(f"{site.name}: {error}") from error
    needed = around(site)
    if needed:
        node = Around(node, **needed)
    return node.to(site.device).train(site.module.training)


def around(site: Site) -> dict[str, Any]:
    """Arguments of the wrapper around the new node; none where it needs none."""
    usual = {"scale": 1.0, "divisor": 1.0}
    needed = {key: value for key, value in site.around.items() if value != usual.get(key)}
    if site.rule.reset is not None:
        needed["reset_name"] = site.rule.reset
    return {"time_dim": site.time_dim, **needed} if site.time_dim else needed
