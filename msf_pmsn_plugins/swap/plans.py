"""The plan of a swap as data and as text, and the replacing itself."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .around import Around
from .replace import replace
from .spec import MSF, PMSN, Reading, Rule, SwapError, Target, named

__all__ = ["RESOLVED", "SWAPPED", "Layout", "Plan", "Site", "around", "build", "plain", "short"]

SWAPPED = ("ok", "single-step")
RESOLVED = (*SWAPPED, "keep", "readout", "never called")


@dataclass
class Site:
    """One neuron of the model, what the probe saw of it, and what will become of it.

    ``shape`` is the first call's input, time included; ``time_dim`` counts in it, ``channel_dim`` in the per-step
    tensor. Verdicts: ``ok`` and ``single-step`` (called once per step, its state carried) are swapped; ``keep``,
    ``readout`` and ``never called`` stay; all others are unresolved, and ``note`` names what would resolve them:
    ``called more than once``, ``batch folded into time``, ``no time axis``, ``no time to integrate``, ``no channel
    axis``, ``ambiguous``, ``non-unit output scale``, ``binary only``, ``unsupported dynamics``.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON: all that the printed plan shows."""
        hidden = (
            "module",
            "host",
            "role",
            "reading",
            "rule",
            "device",
            "dtype",
            "arguments",
            "clock",
            "target",
        )
        shown = {key: value for key, value in vars(self).items() if key not in hidden}
        return {**plain(shown), "target": plain(named(self.target))}


def plain(value: Any) -> Any:
    """``value`` as JSON-native data."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str | int | float | bool | None) else _words(value)


def _words(value: Any) -> str:
    """A value as a short text without memory addresses."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return f"{value.item():.6g}" if value.numel() == 1 else f"tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return getattr(value, "__qualname__", type(value).__name__) if " at 0x" in text else text


@dataclass
class Layout:
    """Which axes of the example are time and batch, and how many steps and samples both probes had."""

    sizes: tuple[int, ...]
    time: int | None
    batch: int
    first: tuple[int | None, int]
    second: tuple[int | None, int] | None

    def __str__(self) -> str:
        if not self.sizes:
            return "input: its sizes could not be read"
        time = "no time axis" if self.time is None else f"time on axis {self.time}"
        return f"input [{', '.join(map(str, self.sizes))}]: {time}, batch on axis {self.batch}"


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
            lines = [f"  {', '.join(paths)}: {why}" for why, paths in _by_reason(self.unresolved).items()]
            raise SwapError(
                f"{len(self.unresolved)} neuron(s) cannot be swapped as planned:\n" + "\n".join(lines)
            )
        todo = [s for s in self.sites if s.verdict in SWAPPED]
        if not todo:
            raise SwapError(f"no neuron would be swapped: {self._counts()}")
        modules = dict(self.model.named_modules(remove_duplicate=False))
        if any(modules.get(s.path) is not s.module for s in todo):
            raise SwapError("the model has changed since it was planned: make a new plan")
        return todo

    @property
    def unresolved(self) -> list[Site]:
        """The sites whose verdict must be resolved before the plan can be applied."""
        return [s for s in self.sites if s.verdict not in RESOLVED]

    def _counts(self) -> str:
        counts = Counter(s.verdict for s in self.sites)
        return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, fit for JSON."""
        return {
            "dynamics": self.dynamics,
            "input": plain(vars(self.layout)),
            "warnings": list(self.warnings),
            "sites": [s.to_dict() for s in self.sites],
        }

    def _rows(self) -> list[tuple[str, ...]]:
        heads = ("neuron", "now", "becomes", "calls", "one step", "time", "channels", "verdict")
        rows = [
            (s.name, s.old, _label(s), str(s.calls), _shape(s), _time(s), _channels(s), s.verdict)
            for s in self.sites
        ]
        usual = {"calls": {"0", "1"}, "time": {"axis 0", "-"}}  # then the column would say nothing
        columns = [
            i
            for i, head in enumerate(heads)
            if {row[i] for row in rows} - usual.get(head, {""}) or head == "channels"
        ]
        return [tuple(row[i] for i in columns) for row in (heads, *rows)]

    def _remarks(self) -> list[str]:
        count = f"{len(self.sites)} neuron{'s' * (len(self.sites) != 1)}"
        lines = [f"{count}: {self._counts()}; dynamics={self.dynamics!r}; {self.layout}"]
        swapped = [s for s in self.sites if s.verdict in SWAPPED]
        hidden = ("channels", "channel_dim")  # the table shows them
        for title, texts in (
            ("keeps", {s.path: _list(s.carried) for s in swapped}),
            ("sets", {s.path: _list({k: v for k, v in s.sets.items() if k not in hidden}) for s in swapped}),
            ("wraps", {s.path: _list(around(s)) for s in swapped}),
        ):
            for text in dict.fromkeys(text for text in texts.values() if text):
                paths = [s.name for s in swapped if texts[s.path] == text]
                lines.append(f"  {title} at {short(paths, len(swapped))}: {text}")
        shared = {tuple(sorted([s.path, *s.shared_with])) for s in swapped if s.shared_with}
        lines += [f"  {' and '.join(paths)} are one module and stay one" for paths in sorted(shared)]
        noted = _by_reason(s for s in self.sites if s.note)
        lines += [f"  {', '.join(paths)}: {why}" for why, paths in noted.items()]
        for text in dict.fromkeys(w for s in self.sites for w in s.warnings):
            paths = [s.name for s in self.sites if text in s.warnings]
            lines.append(f"  warning at {short(paths, len(self.sites))}: {text}")
        return lines + [f"  warning: {text}" for text in self.warnings]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join(lines + self._remarks())

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str, style: str = "") -> str:
            return f"<tr{style}>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        heads, *rows = self._rows()
        marked = ' style="color: #b00020; font-weight: bold"'
        body = "".join(
            row(cells, "td", "" if site.verdict in RESOLVED else marked)
            for cells, site in zip(rows, self.sites, strict=True)
        )
        remarks = html.escape("\n".join(self._remarks()))
        return f"<table><thead>{row(heads, 'th')}</thead><tbody>{body}</tbody></table><pre>{remarks}</pre>"


def _moved(old: nn.Module, new: nn.Module) -> nn.Module:
    """``old`` in the mode of ``new``, and on its device if both hold tensors."""
    for mine in (*old.parameters(), *old.buffers()):
        for its in (*new.parameters(), *new.buffers()):
            if mine.device != its.device:
                old.to(its.device)
            return old.train(new.training)
    return old.train(new.training)


def _by_reason(sites: Iterable[Site]) -> dict[str, list[str]]:
    """``"verdict: note"`` -> the sites it holds for."""
    grouped: dict[str, list[str]] = {}
    for site in sites:
        grouped.setdefault(f"{site.verdict}: {site.note}", []).append(site.name)
    return grouped


def short(paths: list[str], total: int) -> str:
    """Some of ``total`` paths in a few words."""
    if len(paths) == total and total > 1:
        return f"all {total}"
    return ", ".join(paths) if len(paths) <= 6 else f"{', '.join(paths[:4])} .. ({len(paths)} neurons)"


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value if isinstance(value, str) and key == 'charge' else _words(value)}"
        for key, value in values.items()
    )


def _label(site: Site) -> str:
    if site.verdict in ("keep", "readout", "never called"):
        return "(stays)"
    target = site.target
    return f"MSF(D={target.D})" if isinstance(target, MSF) else f"PMSN({getattr(target, 'compartments', '')})"


def _shape(site: Site) -> str:
    if not site.shape:
        return "-"
    inner = f"[{', '.join(map(str, site.step_shape))}]"
    return inner if site.time_dim is None else f"{site.steps} x {inner}"


def _time(site: Site) -> str:
    return "-" if not site.shape else "step" if site.time_dim is None else f"axis {site.time_dim}"


def _channels(site: Site) -> str:
    if site.around.get("shared"):
        return "shared by all"
    if site.channel_dim is None:
        return "-"
    dims = site.channel_dim if isinstance(site.channel_dim, tuple) else (site.channel_dim,)
    step = ",".join(str(d) for d in dims)
    if site.time_dim is None:
        return f"{site.channels} on axis {step}"
    whole = dims
    if not ({"steps", "batch"} & site.around.keys()):
        whole = tuple(d + (d >= site.time_dim) for d in dims)
    return f"{site.channels} on axis {step} ({','.join(map(str, whole))} with time)"


def build(site: Site, built: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The new node, inside what it needs around it."""
    assert site.host is not None
    name = "pmsn" if isinstance(site.target, PMSN) else "msf"
    try:
        node: nn.Module = site.host.NODES[name](**site.arguments)
    except ValueError as error:
        raise SwapError(f"{site.name}: {error}") from error
    needed = around(site)
    if needed:
        clock = None if site.clock is None else built.get(site.clock.module, site.clock.module)
        node = Around(node, clock=clock, **needed)
    return node.to(site.device).train(site.module.training)


def around(site: Site) -> dict[str, Any]:
    """Arguments of the wrapper around the new node; none where it needs none."""
    usual = {"scale": 1.0, "divisor": 1.0}
    needed = {key: value for key, value in site.around.items() if value != usual.get(key)}
    return {"time_dim": site.time_dim, **needed} if site.time_dim else needed
