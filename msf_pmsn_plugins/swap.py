"""Swap the neurons of a built model, in place, and say beforehand what will happen.

::

    plan = swap.plan(model, example_input, swap.MSF(D=4))
    print(plan)              # per neuron: path, class, shape of a step, channel axis, verdict
    model = plan.apply()     # raises while a verdict is unresolved; returns the model

    model = swap.msf(model, example_input, D=4)                  # plan and apply
    model = swap.pmsn(model, example_input, compartments=5)

The probe runs the model twice without gradients in evaluation mode, with another batch, another T and, where the
model allows, another height and width: the channel axis is the one that stays. States, modes, buffers, other tensors
that modules hold, and random generators are put back.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from . import neurons
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

    Raises:
        ValueError, TypeError: what no MSF can have.
    """

    D: int = 4
    threshold_step: float = 1.0
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        neurons.MSF(  # for its checks
            D=self.D,
            threshold_step=self.threshold_step,
            v_threshold=1.0 if self.v_threshold is None else self.v_threshold,
            surrogate=self.surrogate_function,
            backend=self.backend,
        )


@dataclass(frozen=True)
class PMSN:
    """Target: PMSN. It takes the site's threshold and step mode; its charge is its own.

    ``channel_dim`` (in the per-step tensor) overrides what the probe finds.

    Raises:
        ValueError, TypeError: what no PMSN can have.
    """

    compartments: int = 5
    channel_dim: int | tuple[int, ...] | None = None
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    init: str = "sequence"
    backend: str = "auto"

    def __post_init__(self) -> None:
        neurons.PMSN(  # for its checks; without channels it holds no numbers yet
            compartments=self.compartments,
            channel_dim=1 if self.channel_dim is None else self.channel_dim,
            v_threshold=1.0 if self.v_threshold is None else self.v_threshold,
            surrogate=self.surrogate_function,
            init=self.init,
            backend=self.backend,
        )


@dataclass(frozen=True)
class Keep:
    """Target of a rule: leave this neuron as it is."""


Target = MSF | PMSN | Keep


@dataclass
class Site:
    """One neuron of the model, what the probe saw of it, and what will become of it.

    ``shape`` is the first call's input, time included; ``channel_dim`` counts in the per-step tensor. Verdicts: ``ok``,
    ``keep``, ``readout``, ``never called`` (these four are final: all but ``ok`` stay as they are), ``called more than
    once``, ``no time axis``, ``no time to integrate``, ``no channel axis``, ``ambiguous``, ``binary only``,
    ``unsupported dynamics`` (unresolved).
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
    by_rule: bool = False
    module: nn.Module = field(repr=False, default_factory=nn.Identity)
    host: ModuleType | None = field(repr=False, default=None)
    device: torch.device | None = field(repr=False, default=None)
    arguments: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step, batch first."""
        return self.shape[1:] if self.step_mode == "m" else self.shape

    def to_dict(self) -> dict[str, Any]:
        """Plain data: all that the printed plan shows."""
        hidden = ("module", "host", "device", "arguments", "target")
        plain = {k: v for k, v in vars(self).items() if k not in hidden}
        return {**plain, "target": {"name": type(self.target).__name__, **asdict(self.target)}}


RESOLVED = ("ok", "keep", "readout", "never called")


@dataclass
class Plan:
    """What a swap will do: print it, then :meth:`apply` it."""

    model: nn.Module
    sites: list[Site]
    dynamics: str
    applied: bool = False

    def apply(self) -> nn.Module:
        """Replace the neurons in place and return the model. Nothing is replaced if one cannot be.

        A model that is itself a neuron cannot be replaced in place: the new neuron is returned.

        Raises:
            SwapError: a verdict is unresolved, no neuron would be swapped, or the plan was applied already.
        """
        todo = self._checked()
        built: dict[nn.Module, nn.Module] = {}
        for site in todo:
            if site.module not in built:
                built[site.module] = _build(site)
        model = built.get(self.model, self.model)
        for site in todo:
            parent, _, name = site.path.rpartition(".")
            if name:
                setattr(model.get_submodule(parent), name, built[site.module])
        for host in {s.host for s in todo if s.host is not None}:
            host.after_swap(model)
        for site in self.sites:  # the old neurons may go: caches of the host may live as long as they do
            site.module, site.arguments = nn.Identity(), {}
        self.model, self.applied = model, True
        return model

    def _checked(self) -> list[Site]:
        """The sites to swap; raise SwapError where the plan cannot be carried out."""
        if self.applied:
            raise SwapError("this plan was applied already: make a new plan")
        unresolved = [s for s in self.sites if s.verdict not in RESOLVED]
        if unresolved:
            lines = [f"  {', '.join(paths)}: {why}" for why, paths in _paths_by_reason(unresolved).items()]
            raise SwapError(f"{len(unresolved)} neuron(s) cannot be swapped as planned:\n" + "\n".join(lines))
        todo = [s for s in self.sites if s.verdict == "ok"]
        if not todo:
            raise SwapError(f"no neuron would be swapped: {self._counts()}")
        modules = dict(self.model.named_modules(remove_duplicate=False))
        if any(modules.get(s.path) is not s.module for s in todo):
            raise SwapError("the model has changed since it was planned: make a new plan")
        return todo

    def _counts(self) -> str:
        counts = Counter(s.verdict for s in self.sites)
        return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())

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
        lines.append(f"{len(self.sites)} neurons: {self._counts()}; dynamics={self.dynamics!r}")
        noted = _paths_by_reason(s for s in self.sites if s.note)
        lines += [f"  {', '.join(paths)}: {why}" for why, paths in noted.items()]
        return "\n".join(lines)


def _paths_by_reason(sites: Iterable[Site]) -> dict[str, list[str]]:
    """``"verdict: note"`` -> the paths of the sites it holds for."""
    grouped: dict[str, list[str]] = {}
    for site in sites:
        grouped.setdefault(f"{site.verdict}: {site.note}", []).append(site.path or "(the model)")
    return grouped


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
    try:
        node = site.host.NODES[name](**site.arguments)
    except ValueError as error:
        raise SwapError(f"{site.path or '(the model)'}: {error}") from error
    return node.to(site.device).train(site.module.training)


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
        example_input: what the model takes: ``model(example_input)``, or ``model(*example_input)`` for a tuple.
            Tensors inside lists and dicts are found too.
        target: ``swap.MSF(...)`` or ``swap.PMSN(...)``.
        dynamics: ``"site"`` keeps each site's own charge, threshold, reset, surrogate and detach in its own order of
            operations, so that MSF with D = 1 computes the same bits; ``"published"`` takes the paper's.
        filter_fn: ``(module, path) -> bool``; neurons for which it is False are kept.
        rules: targets for single sites by path, or by ``"re:<regular expression>"`` matched against the whole path;
            the first match wins. A rule is taken at its word: it may put a PMSN where the example has one step, or
            counts into a block made for binary spikes.

    Raises:
        SwapError: the model has no neuron of a known framework, or a rule matches none.
        TypeError, ValueError: a target that is none, unknown dynamics.
    """
    if not isinstance(target, MSF | PMSN):
        raise TypeError(f"target must be swap.MSF(...) or swap.PMSN(...), got {target!r}")
    for pattern, rule in (rules or {}).items():
        if not isinstance(rule, Target):
            raise TypeError(f"rule {pattern!r} must name a swap.MSF, swap.PMSN or swap.Keep, got {rule!r}")
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
        if site.verdict == "ok" and isinstance(site.target, MSF):
            _check_counts(model, site, site.target)
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
        host = _host(module)
        if host is not None:
            mode = _step_mode(module) or "s"
            yield Site(path, type(module).__name__, target, step_mode=mode, module=module, host=host)


def _host(module: nn.Module) -> ModuleType | None:
    """The skin for the framework in whose ``neuron`` package the class of ``module``, or a parent of it, lives."""
    homes = [cls.__module__.split(".") for cls in type(module).__mro__]
    if all(home[0] != __package__ for home in homes):  # not one of ours
        for root, skin in HOSTS.items():
            if any(home[0] == root and "neuron" in home for home in homes):
                return importlib.import_module(skin)
    return None


def _step_mode(module: Any) -> str | None:
    """``"s"``, ``"m"``, or None where the module does not say."""
    supported = list(module.supported_step_mode()) if hasattr(module, "supported_step_mode") else []
    return supported[0] if len(supported) == 1 else getattr(module, "step_mode", None)


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
                site.target, site.by_rule = target, True
                break
    unused = [p for p in rules if p not in used]
    if unused:
        paths = ", ".join(s.path for s in sites)
        raise SwapError(f"no neuron matches the rule(s) {unused}; the neurons are: {paths}")


# The probe ------------------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a site: shape and device of its input and the widths of the weight layers around it."""

    shape: tuple[int, ...]
    device: torch.device
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
    tensors = [*pytree.tree_leaves(inputs), *model.parameters()]
    devices = sorted({x.get_device() for x in tensors if isinstance(x, Tensor) and x.is_cuda})
    # The input begins with [T, N], or with [N] where the model steps or repeats by itself.
    leads = (2, 1) if any(s.step_mode == "m" for s in sites) else (1,)
    with torch.random.fork_rng(devices=devices):
        first = _record(model, sites, inputs)
        for lead in leads:
            for grow_space in (True, False):
                other = _resized(inputs, lead, grow_space)
                if other is None:
                    continue
                try:
                    return _Probe(first, _record(model, sites, other), lead == 2)
                except Exception:
                    continue
        return _Probe(first, {}, False)


def _resized(inputs: tuple[Any, ...], lead: int, grow_space: bool) -> tuple[Any, ...] | None:
    """The inputs with their first ``lead`` axes grown, each by another number, or None if there is nothing to grow.

    ``grow_space`` doubles height and width: strides still fit.
    """
    grown = 0

    def grow(x: Tensor) -> Tensor:
        nonlocal grown
        if x.dim() < lead:
            return x
        grown += 1
        size = [n + 1 + i for i, n in enumerate(x.shape[:lead])] + list(x.shape[lead:])
        if grow_space:
            size[lead + 1 :] = [2 * n for n in size[lead + 1 :]]
        y = x.new_zeros(size)
        return y.uniform_() if x.is_floating_point() else y

    other = pytree.tree_map_only(Tensor, grow, inputs)
    return other if grown else None


def _record(model: nn.Module, sites: Sequence[Site], inputs: tuple[Any, ...]) -> Calls:
    by_module: dict[nn.Module, list[_Call]] = {s.module: [] for s in sites}
    width: list[int | None] = [None]
    waiting: list[_Call] = []

    def at_site(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if x is not None:
            call = _Call(tuple(x.shape), x.device, width[0])
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
        with torch.no_grad(), _undisturbed(model):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {s.path: by_module[s.module] for s in sites}


def _width(module: nn.Module, *names: str) -> int | None:
    return next((n for n in (getattr(module, name, None) for name in names) if isinstance(n, int)), None)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode from fresh states; put back the modes and every tensor a module holds."""
    modes = {m: m.training for m in model.modules()}
    memories = [m for m in modes if isinstance(getattr(m, "_memories", None), dict)]
    boxes: list[Any] = (
        [vars(m) for m in modes] + [m._buffers for m in modes] + [m._memories for m in memories]
    )
    held = [(box, dict(box)) for box in boxes]
    contents = [(x, x._version, x.detach().clone()) for _, old in held for x in _tensors(old).values()]
    try:
        for module in memories:
            vars(module)["_memories"].update(vars(module)["_memories_rv"])
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for box, old in held:
            changed = _tensors(box).keys() | _tensors(old).keys()
            for name in changed - old.keys():
                del box[name]
            box.update({name: old[name] for name in changed & old.keys()})
        for x, version, content in contents:
            if x._version != version:
                x.copy_(content)


def _tensors(box: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in box.items() if isinstance(x, Tensor)}


# Judging --------------------------------------------------------------------------------------------------------------


def _judge(site: Site, probe: _Probe) -> None:
    """Set the verdict and, for PMSN, the channel axis."""
    first, second = probe.first[site.path], probe.second.get(site.path, [])
    site.calls = len(first)
    if first:
        site.shape, site.device = first[0].shape, first[0].device
    assert site.host is not None
    if isinstance(site.target, Keep):
        site.verdict = "keep"
    elif site.host.is_readout(site.module):
        site.verdict, site.note = "readout", "integrates without firing (infinite threshold): it stays"
    elif not first:
        site.verdict, site.note = "never called", "the forward pass does not reach it: it stays"
    elif site.step_mode == "m" and len(first) > 1:
        site.verdict = "called more than once"
        site.note = "its state would run on into the next call; keep it with rules={path: swap.Keep()}"
    elif site.step_mode == "m" and not _follows_t(site, second, probe.other_t):
        site.verdict = "no time axis"
        site.note = f"step_mode='m', but axis 0 of its input {site.shape} does not follow T"
    elif isinstance(site.target, PMSN) and site.step_mode == "m" and site.shape[0] == 1 and not site.by_rule:
        site.verdict = "no time to integrate"
        site.note = (
            "the example has T = 1: give an example with more steps, use MSF, or, if one step is meant, name the "
            "target in rules={path: swap.PMSN(...)}"
        )
    elif isinstance(site.target, PMSN):
        _find_channels(site, site.target, first[0], second[0].shape if second else None)


def _check_counts(model: nn.Module, site: Site, target: MSF) -> None:
    """Counts above 1 go wrong in residual blocks that multiply spikes."""
    parts = site.path.split(".")
    owners = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    names = [(owner, name) for owner in owners for name in ("cnf", "connect_f")]
    gates = [f"{n}={getattr(o, n)!r}" for o, n in names if getattr(o, n, None) in ("AND", "IAND")]
    if gates and target.D > 1:
        site.note = f"its block has {gates[0]}, made for binary spikes ((1 - x)*y turns negative on counts)"
        if not site.by_rule:
            site.verdict = "binary only"
            site.note += ": use 'ADD', or D=1, or name the target in rules={path: swap.MSF(...)}"


def _follows_t(site: Site, second: list[_Call], other_t: bool) -> bool:
    """Whether axis 0 is T: it grew by one with T, and stayed where T did."""
    return len(site.shape) >= 2 and (not second or second[0].shape[0] == site.shape[0] + other_t)


def _find_channels(site: Site, target: PMSN, call: _Call, other: tuple[int, ...] | None) -> None:
    step = site.step_shape
    if target.channel_dim is not None:
        dims = target.channel_dim if isinstance(target.channel_dim, tuple) else (target.channel_dim,)
        dims = tuple(d + len(step) if d < 0 else d for d in dims)
        if any(not 1 <= d < len(step) for d in dims) or any(b - a != 1 for a, b in pairwise(dims)):
            site.verdict = "no channel axis"
            site.note = (
                f"channel_dim={target.channel_dim} names no axis (or adjacent axes) of one step {step}"
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
                f"{call.before} and {call.after} wide; name the axis with rules={{path: swap.PMSN(channel_dim=...)}} "
                "or keep the neuron with swap.Keep()"
            )
            return
    site.channel_dim = dims[0] if len(dims) == 1 else dims
    site.channels = math.prod(step[d] for d in dims)


def _channel_axes(step: tuple[int, ...], stays: tuple[int, ...], widths: set[int | None]) -> tuple[int, ...]:
    """The one axis that stays; else the one, or the adjacent ones together, as wide as a layer around the neuron.

    Behind a larger axis, axes of size 1 do not count: [N, C, 1, 1] has its channels on axis 1. In front they do:
    [N, 1, L] may be a mean over the channels.
    """
    if len(stays) == 1 and step[stays[0]] > 1:
        return stays
    axes = [i for i in stays if step[i] > 1 or all(step[j] == 1 for j in stays if j < i)]
    groups = [group for n in range(1, len(axes) + 1) for group in combinations(axes, n)]
    fitting = [group for group in groups if math.prod(step[i] for i in group) in widths]
    if len(fitting) != 1:
        return ()
    (group,) = fitting
    run = tuple(range(group[0], group[-1] + 1))
    return run if all(i in group or (i in stays and step[i] == 1) for i in run) else ()


def _arguments(site: Site, dynamics: str) -> dict[str, Any]:
    """Constructor arguments of the new node."""
    host, module, target = site.host, site.module, site.target
    assert host is not None
    assert not isinstance(target, Keep)
    if isinstance(target, MSF):
        own = {"D": target.D, "threshold_step": target.threshold_step, "backend": target.backend}
        keeps_all = dynamics == "site" and host.is_neuron(module)
        if dynamics == "site" and not keeps_all:
            raise ValueError(
                f"{site.old} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep this "
                "site with rules={path: swap.Keep()}"
            )
        arguments = host.site_dynamics(module) if keeps_all else _settings(site)
    else:
        own = {
            "channels": site.channels,
            "channel_dim": site.channel_dim,
            "compartments": target.compartments,
            "init": target.init,
            "backend": target.backend,
        }
        arguments = _settings(site)
    if target.v_threshold is not None:
        own["v_threshold"] = target.v_threshold
    if target.surrogate_function is not None:
        own["surrogate_function"] = target.surrogate_function
    return {**arguments, **own}


def _settings(site: Site) -> dict[str, Any]:
    """Threshold and step mode of the site, if they can be read."""
    assert site.host is not None
    assert not isinstance(site.target, Keep)
    if site.host.is_neuron(site.module):
        return site.host.site_settings(site.module)
    threshold = site.target.v_threshold or getattr(site.module, "v_threshold", None)
    if not isinstance(threshold, int | float):
        raise ValueError(
            f"{site.old} has no v_threshold that is a number: give the target one (v_threshold=...), or keep this "
            "site with rules={path: swap.Keep()}"
        )
    if _step_mode(site.module) is None:
        raise ValueError(f"{site.old} has no step_mode: keep this site with rules={{path: swap.Keep()}}")
    return {"v_threshold": float(threshold), "step_mode": site.step_mode}
