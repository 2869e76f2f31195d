"""Swap the neurons of a built model, in place, and say beforehand what will happen.

::

    plan = swap.plan(model, example_input, swap.MSF(D=4))
    print(plan)              # per neuron: path, class, shape of a step, channel axis, verdict
    model = plan.apply()     # raises while a verdict is unresolved; returns the model

    model = swap.msf(model, example_input, D=4)                  # plan and apply
    model = swap.pmsn(model, example_input, compartments=5)

The probe runs the model twice without gradients in evaluation mode, with another batch, another T and, where the
model allows, another height and width: the channel axis is the one that stays. All states, modes, buffers and random
generators are put back.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .surrogate import FireFunction, Surrogate

__all__ = ["MSF", "PMSN", "Keep", "Plan", "Site", "SwapError", "msf", "plan", "pmsn"]

# The skin that knows a framework's neurons, by the framework's import name.
HOSTS = {"spikingjelly": "msf_pmsn_plugins.spikingjelly"}


class SwapError(ValueError):
    """A swap that would be wrong or do nothing."""


@dataclass(frozen=True)
class MSF:
    """Target: MSF with D thresholds, ``threshold_step`` apart.

    Under ``dynamics="site"`` everything else is the site's own. Under ``"published"`` it is the paper's; the site's
    threshold is kept unless ``v_threshold`` is given.
    """

    D: int = 4
    threshold_step: float = 1.0
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    backend: str = "auto"


@dataclass(frozen=True)
class PMSN:
    """Target: PMSN. It takes the site's threshold and step mode; its charge is its own.

    ``channel_dim`` (in the per-step tensor) overrides what the probe finds.
    """

    compartments: int = 5
    channel_dim: int | tuple[int, ...] | None = None
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    init: str = "sequence"
    backend: str = "auto"


@dataclass(frozen=True)
class Keep:
    """Target of a rule: leave this neuron as it is."""


Target = MSF | PMSN | Keep


@dataclass
class Site:
    """One neuron of the model, what the probe saw of it, and what will become of it.

    ``shape`` is the first call's input, time included; ``channel_dim`` counts in the per-step tensor. Verdicts: ``ok``,
    ``keep``, ``readout``, ``never called`` (these four are final: all but ``ok`` stay as they are), ``called more than
    once``, ``no time axis``, ``no channel axis``, ``ambiguous``, ``unsupported dynamics`` (unresolved).
    """

    path: str
    old: str
    target: Target
    verdict: str = "ok"
    note: str = ""
    step_mode: str = "s"
    calls: int = 0
    shape: tuple[int, ...] = ()
    channel_dim: int | tuple[int, ...] | None = None
    channels: int | None = None
    module: nn.Module = field(repr=False, default_factory=nn.Identity)
    host: ModuleType | None = field(repr=False, default=None)
    arguments: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step, batch first."""
        return self.shape[1:] if self.step_mode == "m" else self.shape

    def to_dict(self) -> dict[str, Any]:
        """Plain data: all that the printed plan shows."""
        plain = {k: v for k, v in vars(self).items() if k not in ("module", "host", "arguments", "target")}
        return {**plain, "target": {"name": type(self.target).__name__, **asdict(self.target)}}


RESOLVED = ("ok", "keep", "readout", "never called")


@dataclass
class Plan:
    """What a swap will do: print it, then :meth:`apply` it."""

    model: nn.Module
    sites: list[Site]
    dynamics: str

    def apply(self) -> nn.Module:
        """Replace the neurons in place and return the model.

        A model that is itself a neuron cannot be replaced in place: the new neuron is returned.

        Raises:
            SwapError: a verdict is unresolved, or the plan was applied already.
        """
        open_sites = [s for s in self.sites if s.verdict not in RESOLVED]
        if open_sites:
            lines = "\n".join(f"  {s.path}: {s.verdict}: {s.note}" for s in open_sites)
            raise SwapError(f"{len(open_sites)} neuron(s) cannot be swapped as planned:\n{lines}")
        todo = [s for s in self.sites if s.verdict == "ok"]
        if any(s.path and self.model.get_submodule(s.path) is not s.module for s in todo):
            raise SwapError("the model has changed since it was planned: make a new plan")
        built: dict[int, nn.Module] = {}
        for site in todo:
            new = built.get(id(site.module))
            if new is None:
                new = built[id(site.module)] = _build(site)
            if not site.path:
                return new
            parent, _, name = site.path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, new)
        for host in {s.host for s in todo}:
            assert host is not None
            host.after_swap(self.model)
        return self.model

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"dynamics": self.dynamics, "sites": [s.to_dict() for s in self.sites]}

    def __str__(self) -> str:
        rows = [("neuron", "now", "becomes", "one step", "channels", "verdict")]
        rows += [
            (s.path or "(the model)", s.old, _label(s), _shape(s), _channels(s), s.verdict)
            for s in self.sites
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        counts: dict[str, int] = {}
        for site in self.sites:
            counts[site.verdict] = counts.get(site.verdict, 0) + 1
        total = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        lines.append(f"{len(self.sites)} neurons: {total}; dynamics={self.dynamics!r}")
        lines += [f"  {s.path}: {s.note}" for s in self.sites if s.note]
        return "\n".join(lines)


def _label(site: Site) -> str:
    if site.verdict in ("keep", "readout", "never called"):
        return "(stays)"
    target = site.target
    return f"MSF(D={target.D})" if isinstance(target, MSF) else f"PMSN({getattr(target, 'compartments', '')})"


def _shape(site: Site) -> str:
    if not site.shape:
        return "-"
    inner = ", ".join(map(str, site.step_shape))
    return f"{site.shape[0]} x [{inner}]" if site.step_mode == "m" else f"[{inner}]"


def _channels(site: Site) -> str:
    if site.channel_dim is None:
        return "-"
    whole = site.step_mode == "m"
    dims = site.channel_dim if isinstance(site.channel_dim, tuple) else (site.channel_dim,)
    step = ",".join(str(d) for d in dims)
    seq = ",".join(str(d + whole) for d in dims)
    return f"{site.channels} on axis {step}" + (f" ({seq} with time)" if whole else "")


def _build(site: Site) -> nn.Module:
    assert site.host is not None
    name = "msf" if isinstance(site.target, MSF) else "pmsn"
    node = site.host.NODES[name](**site.arguments)
    like = next((p for p in site.module.parameters()), None)
    if like is not None:
        node.to(like.device)
    return node.train(site.module.training)


def plan(
    model: nn.Module,
    example_input: Any,
    target: MSF | PMSN,
    *,
    dynamics: str = "site",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    rules: Mapping[str, Target] | None = None,
) -> Plan:
    """Find the neurons of ``model`` and say what each would become. Nothing is changed.

    Args:
        model: a built model whose neurons are a known framework's.
        example_input: one input of the model (or a tuple of them), as ``model(example_input)`` takes it.
        target: ``swap.MSF(...)`` or ``swap.PMSN(...)``.
        dynamics: ``"site"`` keeps each site's own charge, threshold, reset, surrogate and detach in its own order of
            operations, so that MSF with D = 1 computes the same bits; ``"published"`` takes the paper's.
        filter_fn: ``(module, path) -> bool``; neurons for which it is False are kept.
        rules: targets for single sites by path, or by ``"re:<regular expression>"`` matched against the whole path;
            the first match wins.

    Raises:
        SwapError: the model has no neuron of a known framework, or a rule matches none.
        TypeError, ValueError: a target that is none, unknown dynamics.
    """
    if not isinstance(target, MSF | PMSN):
        raise TypeError(f"target must be swap.MSF(...) or swap.PMSN(...), got {target!r}")
    if dynamics not in ("site", "published"):
        raise ValueError(f"unknown dynamics {dynamics!r}; known: 'site', 'published'")
    sites = list(_find(model, target))
    if not sites:
        raise SwapError(
            f"{type(model).__name__} has no neuron to swap: known are the neurons of {', '.join(HOSTS)}. "
            "A model that was swapped already has none left"
        )
    _apply_rules(sites, filter_fn, rules or {})
    probe = _probe(model, sites, example_input)
    for site in sites:
        _judge(site, probe)
        if site.verdict == "ok":
            try:
                site.arguments = _arguments(site, dynamics)
            except ValueError as error:
                site.verdict, site.note = "unsupported dynamics", str(error)
    return Plan(model, sites, dynamics)


def msf(model: nn.Module, example_input: Any, *, dynamics: str = "site", **spec: Any) -> nn.Module:
    """Swap every neuron for an MSF, in place: ``plan(model, example_input, MSF(**spec)).apply()``."""
    return plan(model, example_input, MSF(**spec), dynamics=dynamics).apply()


def pmsn(model: nn.Module, example_input: Any, **spec: Any) -> nn.Module:
    """Swap every neuron for a PMSN, in place: ``plan(model, example_input, PMSN(**spec)).apply()``."""
    return plan(model, example_input, PMSN(**spec)).apply()


def _find(model: nn.Module, target: Target) -> Iterator[Site]:
    for path, module in model.named_modules(remove_duplicate=False):
        for root in {cls.__module__.partition(".")[0] for cls in type(module).__mro__} & HOSTS.keys():
            host = importlib.import_module(HOSTS[root])
            if host.is_neuron(module):
                mode = getattr(module, "step_mode", "s")
                yield Site(path, type(module).__name__, target, step_mode=mode, module=module, host=host)


def _apply_rules(
    sites: list[Site], filter_fn: Callable[[nn.Module, str], bool] | None, rules: Mapping[str, Target]
) -> None:
    used = set()
    for site in sites:
        if filter_fn is not None and not filter_fn(site.module, site.path):
            site.target = Keep()
        for pattern, target in rules.items():
            matches = (
                re.fullmatch(pattern[3:], site.path) if pattern.startswith("re:") else pattern == site.path
            )
            if matches:
                used.add(pattern)
                site.target = target
                break
    unused = [p for p in rules if p not in used]
    if unused:
        paths = ", ".join(s.path for s in sites)
        raise SwapError(f"no neuron matches the rule(s) {unused}; the neurons are: {paths}")


# The probe ------------------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a site: the shape of its input and the widths of the weight layers around it."""

    shape: tuple[int, ...]
    before: int | None
    after: int | None = None


Calls = dict[str, list[_Call]]


@dataclass
class _Probe:
    """The calls for the example and for an input of other sizes, and whether that one had another T."""

    first: Calls
    second: Calls
    other_t: bool


def _probe(model: nn.Module, sites: Sequence[Site], example_input: Any) -> _Probe:
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    # The input begins with [T, N], or with [N] where the model steps or repeats by itself.
    leads = (2, 1) if any(s.step_mode == "m" for s in sites) else (1,)
    with _undisturbed(model):
        first = _record(model, sites, inputs)
        for lead in leads:
            for grow_space in (True, False):
                other = tuple(_resized(x, lead, grow_space) for x in inputs)
                try:
                    return _Probe(first, _record(model, sites, other), lead == 2)
                except Exception:
                    continue
        return _Probe(first, {}, False)


def _resized(x: Any, lead: int, grow_space: bool) -> Any:
    """One more in each of the first ``lead`` axes; ``grow_space`` doubles height and width: strides still fit."""
    if not isinstance(x, Tensor) or x.dim() < lead:
        return x
    size = [n + 1 for n in x.shape[:lead]] + list(x.shape[lead:])
    if grow_space:
        size[lead + 1 :] = [2 * n for n in size[lead + 1 :]]
    return torch.rand(size, dtype=x.dtype, device=x.device) if x.is_floating_point() else x.new_zeros(size)


def _record(model: nn.Module, sites: Sequence[Site], inputs: tuple[Any, ...]) -> Calls:
    by_module: dict[nn.Module, list[_Call]] = {s.module: [] for s in sites}
    width: list[int | None] = [None]
    waiting: list[_Call] = []

    def at_site(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if x is not None:
            call = _Call(tuple(x.shape), width[0])
            by_module[module].append(call)
            waiting.append(call)

    def before_layer(module: nn.Module, args: Any) -> None:
        into = _width(module, "in_channels", "in_features", "num_features")
        if into is not None:
            for call in waiting:
                call.after = into
            waiting.clear()

    def after_layer(module: nn.Module, args: Any, output: Any) -> None:
        width[0] = _width(module, "out_channels", "out_features", "num_features") or width[0]

    hooks = [m.register_forward_pre_hook(at_site, with_kwargs=True) for m in by_module]
    for module in model.modules():
        if module not in by_module:
            hooks.append(module.register_forward_pre_hook(before_layer))
            hooks.append(module.register_forward_hook(after_layer))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        _restore_memories(model, {})
    return {s.path: by_module[s.module] for s in sites}


def _width(module: nn.Module, *names: str) -> int | None:
    return next((n for n in (getattr(module, name, None) for name in names) if isinstance(n, int)), None)


def _restore_memories(model: nn.Module, saved: Mapping[int, dict[str, Any]]) -> None:
    """Put the hosts' memories back to ``saved``, or to their reset values."""
    for module in model.modules():
        memories = getattr(module, "_memories", None)
        if isinstance(memories, dict):
            memories.update(saved.get(id(module), getattr(module, "_memories_rv", {})))


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode from fresh states; put modes, buffers, memories and generators back."""
    modes = {m: m.training for m in model.modules()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers() if b is not None}
    kept = {id(m): getattr(m, "_memories", None) for m in model.modules()}
    memories = {key: dict(value) for key, value in kept.items() if isinstance(value, dict)}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            _restore_memories(model, {})
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
            _restore_memories(model, memories)


# Judging --------------------------------------------------------------------------------------------------------------


def _judge(site: Site, probe: _Probe) -> None:
    """Set the verdict and, for PMSN, the channel axis."""
    first, second = probe.first[site.path], probe.second.get(site.path, [])
    site.calls = len(first)
    if first:
        site.shape = first[0].shape
    assert site.host is not None
    if isinstance(site.target, Keep):
        site.verdict = "keep"
    elif site.host.is_readout(site.module):
        site.verdict, site.note = "readout", "integrates without firing (infinite threshold): it stays"
    elif not first:
        site.verdict, site.note = "never called", "the forward pass does not reach it: it stays"
    elif site.step_mode == "m" and len(first) > 1:
        site.verdict = "called more than once"
        site.note = (
            "its state would run on from one call into the next; keep it with rules={path: swap.Keep()}"
        )
    elif site.step_mode == "m" and not _follows_t(site, second, probe.other_t):
        site.verdict = "no time axis"
        site.note = f"step_mode='m', but axis 0 of its input {site.shape} does not follow T"
    elif isinstance(site.target, PMSN):
        _find_channels(site, site.target, first[0], second[0].shape if second else None)


def _follows_t(site: Site, second: list[_Call], other_t: bool) -> bool:
    """Whether axis 0 is T: it grew by one with T, and stayed where T did."""
    return len(site.shape) >= 2 and (not second or second[0].shape[0] == site.shape[0] + other_t)


def _find_channels(site: Site, target: PMSN, call: _Call, other: tuple[int, ...] | None) -> None:
    step = site.step_shape
    if target.channel_dim is not None:
        dims = target.channel_dim if isinstance(target.channel_dim, tuple) else (target.channel_dim,)
        dims = tuple(d + len(step) if d < 0 else d for d in dims)
        if any(not 0 <= d < len(step) for d in dims):
            site.verdict, site.note = (
                "no channel axis",
                f"channel_dim={target.channel_dim} of one step {step}",
            )
            return
    else:
        other_step = step if other is None else other[1:] if site.step_mode == "m" else other
        stays = tuple(
            i for i in range(1, len(step)) if len(other_step) == len(step) and step[i] == other_step[i]
        )
        dims = _channel_axes(step, stays, {call.before, call.after})
        if not dims:
            site.verdict = "ambiguous" if stays else "no channel axis"
            site.note = (
                f"axes {stays} of one step {step} do not change with batch and size, and the layers around it are "
                f"{call.before} and {call.after} wide; name the axis with "
                f"rules={{{site.path!r}: swap.PMSN(channel_dim=...)}} or keep the neuron with swap.Keep()"
            )
            return
    site.channel_dim = dims[0] if len(dims) == 1 else dims
    site.channels = math.prod(step[d] for d in dims)


def _channel_axes(step: tuple[int, ...], stays: tuple[int, ...], widths: set[int | None]) -> tuple[int, ...]:
    """The one axis that stays; else the one (or the adjacent ones together) as wide as a layer around the neuron."""
    if len(stays) == 1:
        return stays
    runs = [stays[i:j] for i in range(len(stays)) for j in range(i + 1, len(stays) + 1)]
    runs = [
        run for run in runs if run[-1] - run[0] == len(run) - 1 and math.prod(step[d] for d in run) in widths
    ]
    return runs[0] if len(runs) == 1 else ()


def _arguments(site: Site, dynamics: str) -> dict[str, Any]:
    """Constructor arguments of the new node."""
    host, module, target = site.host, site.module, site.target
    assert host is not None
    assert not isinstance(target, Keep)
    if isinstance(target, MSF):
        own = {"D": target.D, "threshold_step": target.threshold_step, "backend": target.backend}
        arguments = host.site_dynamics(module) if dynamics == "site" else host.site_settings(module)
    else:
        own = {
            "channels": site.channels,
            "channel_dim": site.channel_dim,
            "compartments": target.compartments,
            "init": target.init,
            "backend": target.backend,
        }
        arguments = host.site_settings(module)
    if target.v_threshold is not None:
        own["v_threshold"] = target.v_threshold
    if target.surrogate_function is not None:
        own["surrogate_function"] = target.surrogate_function
    return {**arguments, **own}
