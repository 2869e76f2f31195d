"""Look at the neurons of a model and judge what a swap would make of each."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import nn

from . import guards
from .dynamics import arguments, explain, fingerprint
from .plans import RESOLVED, SWAPPED, Layout, Plan, Site, short
from .probe import Call, Probe, probe
from .sites import find, like_neurons, observe, steps_of
from .spec import MSF, PMSN, Activation, Keep, Read, Reading, Rule, SwapError, Target

__all__ = ["plan"]


def plan(
    model: nn.Module,
    example_input: Any,
    target: MSF | PMSN,
    *,
    dynamics: str = "site",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    rules: Mapping[Any, Target | Rule] | None = None,
    time_dim: int | str = "auto",
    neuron_classes: Sequence[type] | Mapping[type, Reading] = (),
) -> Plan:
    """Find the neurons of ``model`` and say what each would become. Nothing is changed.

    Args:
        model: a built model. Its neurons are those of SpikingJelly and snnTorch, subclasses of them, copies of their
            classes (known by the class names), and ``neuron_classes``.
        example_input: what the model takes: ``model(example_input)``, or ``model(*example_input)`` for a tuple.
            Tensors inside lists and dicts are found too.
        target: ``swap.MSF(...)`` or ``swap.PMSN(...)``.
        dynamics: ``"site"`` keeps each site's own charge, threshold, reset, surrogate and detach in its own order of
            operations, so that MSF with D = 1 computes the same bits; ``"published"`` takes the paper's.
        filter_fn: ``(module, path) -> bool``; neurons for which it is False are kept.
        rules: what to do at single sites, by path, by ``"re:<regular expression>"`` matched against the whole path, or
            by a predicate ``(module, path) -> bool``; the first match wins. A value is a target or a
            :class:`swap.Rule`. It is taken at its word: it may put a PMSN where the example has one step, or counts
            into a block made for binary spikes.
        time_dim: the axis of time in the example input, 0 for [T, N, *], 1 for [N, T, *]; ``"auto"`` finds it by
            running the model with another T.
        neuron_classes: neuron classes of your own, or a mapping from class to :class:`swap.Read` (how to read it) or
            :class:`swap.Activation` (``nn.ReLU`` and quantisers).

    Raises:
        SwapError: the model has no neuron that is known, or a rule matches none.
        TypeError, ValueError: a target that is none, unknown dynamics.
    """
    if not isinstance(target, MSF | PMSN):
        raise TypeError(f"target must be swap.MSF(...) or swap.PMSN(...), got {target!r}")
    for pattern, rule in (rules or {}).items():
        if not isinstance(rule, Target | Rule):
            raise TypeError(
                f"rule {pattern!r} must name a swap.MSF, swap.PMSN, swap.Keep or swap.Rule, got {rule!r}"
            )
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(
                f"a rule is found by a path, 're:..' or a predicate (module, path) -> bool, got {pattern!r}"
            )
    if dynamics not in ("site", "published"):
        raise ValueError(f"unknown dynamics {dynamics!r}; known: 'site', 'published'")
    if time_dim not in ("auto", 0, 1):
        raise ValueError(f"time_dim is 'auto', 0 ([T, N, *]) or 1 ([N, T, *]), got {time_dim!r}")
    for cls, reading in neuron_classes.items() if isinstance(neuron_classes, Mapping) else ():
        if not isinstance(reading, Read | Activation):
            raise TypeError(f"{cls.__name__} is read by a swap.Read or swap.Activation, got {reading!r}")
    sites = [
        Site(
            f.path,
            type(f.module).__name__,
            target,
            module=f.module,
            host=f.host,
            role=f.role,
            reading=f.reading,
        )
        for f in find(model, neuron_classes)
    ]
    if not sites:
        raise SwapError(_no_neurons(model))
    for site in sites:
        site.shared_with = [s.path for s in sites if s.module is site.module and s.path != site.path]
    _apply_rules(sites, filter_fn, rules or {})
    sequences = any(s.role == "own" or steps_of(s.module) == "m" for s in sites)
    seen = probe(model, {s.path: s.module for s in sites}, example_input, sequences)
    memory: dict[Any, Any] = {}
    for site in sites:
        _look(site, seen, memory)
    layout = _layout(model, sites, seen, time_dim)
    gates = guards.gated(model, [s.path for s in sites], seen.example)
    for site in sites:
        if site.verdict == "ok":
            _judge(site, seen, layout)
        if site.verdict in SWAPPED:
            _guard(model, site, gates, seen)
        if site.verdict in SWAPPED:
            try:
                site.arguments = arguments(site, dynamics, memory)
                explain(site, dynamics)
            except ValueError as error:
                site.refuse("unsupported dynamics", str(error))
    _set_clocks(sites, seen)
    return Plan(model, sites, dynamics, layout, _warnings(model, sites, seen, layout, time_dim))


def _no_neurons(model: nn.Module) -> str:
    text = (
        f"{type(model).__name__} has no neuron to swap: known are the neurons of SpikingJelly and snnTorch and copies "
        "of them. A model that was swapped already has none left"
    )
    names = like_neurons(model)
    return text + (
        f". If {', '.join(names)} are neurons, name the classes: neuron_classes=(..)" if names else ""
    )


def _apply_rules(
    sites: list[Site],
    filter_fn: Callable[[nn.Module, str], bool] | None,
    rules: Mapping[Any, Target | Rule],
) -> None:
    used = set()
    for site in sites:
        if filter_fn is not None and not filter_fn(site.module, site.path):
            site.target = Keep()
        for key, value in rules.items():
            if _matches(key, site):
                used.add(key)
                rule = value if isinstance(value, Rule) else Rule(target=value)
                site.rule = rule
                if rule.target is not None:
                    site.target, site.by_rule = rule.target, True
                break
    unused = [key for key in rules if key not in used]
    if unused:
        paths = ", ".join(s.path for s in sites)
        raise SwapError(f"no neuron matches the rule(s) {unused}; the neurons are: {paths}")


def _matches(key: Any, site: Site) -> bool:
    if not isinstance(key, str):
        return bool(key(site.module, site.path))
    return bool(re.fullmatch(key[3:], site.path)) if key.startswith("re:") else key == site.path


def _look(site: Site, seen: Probe, memory: dict[Any, Any]) -> None:
    """Take over what the probe saw; set the final verdicts, and how the neuron steps."""
    calls = seen.example.calls[site.path]
    site.calls = len(calls)
    if calls:
        site.shape, site.device, site.dtype = calls[0].shape, calls[0].device, calls[0].dtype
        if site.dtype in (torch.float16, torch.bfloat16):  # states are float32 here, half in most hosts
            site.dtype = torch.float32
    assert site.host is not None
    site.step_mode = "s" if site.role in ("own", "activation") else steps_of(site.module)
    if isinstance(site.target, Keep):
        site.verdict = "keep"
    elif site.host.is_readout(site.module):
        site.refuse("readout", "integrates without firing (infinite threshold): it stays")
    elif not calls:
        site.refuse("never called", "the forward pass does not reach it: it stays")
    elif site.role in ("own", "relative"):
        _experiment(site, memory)
    if site.step_mode == "m" and site.shape and site.time_dim is None:
        site.time_dim = 0
    if site.rule.time_dim is not None and site.shape:
        site.time_dim = site.rule.time_dim % len(site.shape)
        site.step_mode = "m"


def _experiment(site: Site, memory: dict[Any, Any]) -> None:
    """Find out by experiment how a neuron of an unknown class steps, what it keeps and what it emits."""
    if site.device.type == "meta":
        site.refuse("unsupported dynamics", f"{site.old} cannot be tried on the meta device")
        return
    try:
        key = ("observe", fingerprint(site.module), len(site.shape))
        if key not in memory:
            memory[key] = observe(site.module, site.shape, site.device, site.dtype)
        found = memory[key]
    except ValueError as error:
        site.refuse("unsupported dynamics", str(error))
        return
    keeps = found.keeps_state
    if isinstance(site.reading, Read):
        given = {
            name: site.reading.get(name, site.module) for name in ("step_mode", "time_dim", "keeps_state")
        }
        keeps = found.keeps_state if given["keeps_state"] is None else bool(given["keeps_state"])
        site.step_mode = given["step_mode"] or ("m" if found.time_dims else "s")
        if site.step_mode == "m":
            site.time_dim = given["time_dim"]
            if site.time_dim is None:
                if len(found.time_dims) != 1:
                    axes = f"axes {found.time_dims}" if found.time_dims else "no axis"
                    site.refuse(
                        "no time axis",
                        f"earlier input changes later output along {axes} of its input {site.shape}: say which axis "
                        f"is time with neuron_classes={{{site.old}: swap.Read(time_dim=...)}}",
                    )
                    return
                (site.time_dim,) = found.time_dims
        elif not keeps:
            site.refuse(
                "unsupported dynamics",
                f"{site.old} keeps no state from step to step: if it is an activation, read it as one with "
                f"neuron_classes={{{site.old}: swap.Activation()}}",
            )
            return
    if not keeps:
        site.around["keeps_state"] = False
    if found.unit is None:
        site.refuse("unsupported dynamics", f"{site.old} emits real numbers, not spikes")
    elif not math.isclose(found.unit, 1.0, rel_tol=1e-6):
        if site.rule.output_scale is None:
            site.refuse(
                "non-unit output scale",
                f"it emits multiples of {found.unit:.6g}, not counts: multiply the counts by it with "
                "rules={path: swap.Rule(output_scale='keep')}, or emit counts with 'drop'",
            )
        elif site.rule.output_scale == "keep":
            site.around["scale"] = found.unit
    memory["levels", site.path] = max(1, round(found.largest / found.unit)) if found.unit else 1


def _layout(model: nn.Module, sites: list[Site], seen: Probe, time_dim: int | str) -> Layout:
    """Which axis of the input is time: the one that the sequences, or the number of single steps, follow."""
    votes: Counter[int | None] = Counter()
    inner: Counter[int] = Counter()  # T of models that repeat their input themselves
    other = seen.other
    for site in sites:
        first = seen.example.first(site.path)
        second = other.first(site.path) if other is not None else None
        if first is None or second is None or len(first.shape) != len(second.shape):
            continue
        if site.time_dim is not None:
            n, m = first.shape[site.time_dim], second.shape[site.time_dim]
            axis = next((a for a, more in seen.grown.items() if m == n + more and seen.sizes[a] == n), None)
            votes.update([axis] if axis is not None or m == n else [])
            inner.update([n] if m == n else [])
        elif other is not None:
            n, m = site.calls, len(other.calls[site.path])
            axis = next(
                (a for a, more in seen.grown.items() if n * (seen.sizes[a] + more) == m * seen.sizes[a]), None
            )
            votes.update([axis] if n != m and axis is not None else [])
    if time_dim != "auto":
        time: int | None = int(time_dim)
    elif votes:
        time = votes.most_common(1)[0][0]
    else:
        time = 0 if 1 in seen.grown and any(s.time_dim is not None for s in sites) else None
    if len(seen.sizes) < 2:
        time = None if time_dim == "auto" else time
    batch = 0 if time is None else 1 - time
    own = getattr(model, "T", None)
    repeats = inner.most_common(1)[0][0] if time is None and inner else own if isinstance(own, int) else None

    def sizes(grown: Mapping[int, int]) -> tuple[int | None, int]:
        size = {i: n + grown.get(i, 0) for i, n in enumerate(seen.sizes)}
        return (repeats if time is None else size.get(time)), size.get(batch, 1)

    return Layout(seen.sizes, time, batch, sizes({}), None if other is None else sizes(seen.grown))


def _judge(site: Site, seen: Probe, layout: Layout) -> None:
    """Set the verdict and the channel axis."""
    first = seen.example.first(site.path)
    second = seen.other.first(site.path) if seen.other is not None else None
    assert first is not None
    if site.role == "activation":
        if isinstance(site.target, PMSN):
            site.refuse("no time axis", "an activation has no time to integrate: its target is an MSF")
        else:
            site.around["keeps_state"] = False
        return
    if site.time_dim is None:
        site.verdict = "single-step"
    elif site.calls > 1 and site.rule.repeated != "carry" and site.around.get("keeps_state", True):
        site.refuse(
            "called more than once",
            "its state would run on into the next call: if that is meant, as with the old one, say "
            "rules={path: swap.Rule(repeated='carry')}; or keep it with swap.Keep()",
        )
        return
    elif site.rule.time_dim is None and not _follows(site, second, seen, layout):
        if not _folded(site, second, layout):
            site.refuse(
                "no time axis",
                f"it takes sequences, but axis {site.time_dim} of its input {site.shape} does not follow T: name the "
                "axis with rules={path: swap.Rule(time_dim=...)}, or keep it with swap.Keep()",
            )
            return
        steps, batch = layout.first
        if site.rule.folded is None:
            site.refuse(
                "batch folded into time",
                f"axis 0 of its input {site.shape} is T*B = {steps}*{batch}, so one sample's spikes reach the next: "
                "keep that as published with rules={path: swap.Rule(folded='reproduce')}, or unfold it with 'fix'",
            )
            return
        if site.rule.folded == "fix":
            site.around["steps"] = steps
        else:
            site.around["batch"] = True
    if isinstance(site.target, PMSN) and site.time_dim is not None and site.steps == 1 and not site.by_rule:
        site.refuse(
            "no time to integrate",
            "the example has T = 1: give an example with more steps, use MSF, or, if one step is meant, name the "
            "target in rules={path: swap.PMSN(...)}",
        )
        return
    _find_channels(site, first, second, layout)


def _follows(site: Site, second: Call | None, seen: Probe, layout: Layout) -> bool:
    """Whether the site's axis of time is T: it grew as the input's did, and stayed where T did."""
    if len(site.shape) < 2 or site.time_dim is None:
        return False
    if second is None or len(second.shape) != len(site.shape):
        return second is None
    more = 0 if layout.time is None else seen.grown.get(layout.time, 0)
    return second.shape[site.time_dim] == site.shape[site.time_dim] + more


def _folded(site: Site, second: Call | None, layout: Layout) -> bool:
    """Whether axis 0 is T*B in both probes."""
    rows = [(site.shape, layout.first)]
    if second is not None and layout.second is not None:
        rows.append((second.shape, layout.second))
    return site.time_dim == 0 and all(t is not None and shape[0] == t * b for shape, (t, b) in rows)


def _guard(model: nn.Module, site: Site, gates: Mapping[str, str], seen: Probe) -> None:
    """Counts above 1 mean something else in places made for binary spikes."""
    target = site.target
    if not isinstance(target, MSF) or target.D < 2 or site.role == "activation":
        return
    if site.path in gates:
        text = (
            f"a residual block with {gates[site.path]} takes its output, made for binary spikes ((1 - x)*y turns "
            "negative on counts)"
        )
        if site.by_rule:
            site.warnings.append(text)
        else:
            site.refuse(
                "binary only",
                f"{text}: use 'ADD', or D=1, or name the target in rules={{path: swap.MSF(...)}}",
            )
            return
    for warning in (guards.attention(model, site.path, target.D), guards.pooled(seen.example, site.path)):
        if warning is not None:
            site.warnings.append(warning)


def _find_channels(site: Site, call: Call, other: Call | None, layout: Layout) -> None:
    """Find the channel axis; only a PMSN needs one."""
    target, step = site.target, site.step_shape
    pmsn = isinstance(target, PMSN)
    told = site.rule.channel_dim
    if told is None and isinstance(target, PMSN):
        told = target.channel_dim
    if told == "shared":
        site.around["shared"] = True
        site.channel_dim, site.channels = 1, 1
        return
    if told is not None:
        assert not isinstance(told, str)
        dims = told if isinstance(told, tuple) else (told,)
        dims = tuple(d + len(step) if d < 0 else d for d in dims)
        if any(not 1 <= d < len(step) for d in dims) or any(b - a != 1 for a, b in pairwise(dims)):
            site.refuse(
                "no channel axis", f"channel_dim={told} names no axis (or adjacent axes) of one step {step}"
            )
            return
    else:
        stays = _stays(site, other, step, layout)
        dims = _channel_axes(step, stays, {call.before, call.after})
        fits = [i for i in range(1, len(step)) if step[i] == call.before]
        if not dims and call.before_dims == len(step) and fits == [1]:
            dims = (1,)  # right behind a convolution or its norm
        if not dims:
            if pmsn:
                site.refuse(
                    "ambiguous" if stays else "no channel axis",
                    f"axes {stays} of one step {step} do not change with batch and size, and the layers around it are "
                    f"{call.before} and {call.after} wide; name the axis with rules={{path: "
                    "swap.PMSN(channel_dim=...)}, share one set of parameters with swap.Rule(channel_dim='shared'), "
                    "or keep the neuron with swap.Keep()",
                )
            return
    site.channel_dim = dims[0] if len(dims) == 1 else dims
    site.channels = math.prod(step[d] for d in dims)


def _stays(site: Site, other: Call | None, step: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The axes of one step, but the first, that are as long in both probes."""
    if other is None or len(other.shape) != len(site.shape):
        return tuple(range(1, len(step)))
    around = dict(site.around)
    if "steps" in around and layout.second is not None:
        around["steps"] = layout.second[0]
    twin = Site(site.path, site.old, site.target, shape=other.shape, time_dim=site.time_dim, around=around)
    return tuple(i for i, (n, m) in enumerate(zip(step, twin.step_shape, strict=True)) if i and n == m)


def _channel_axes(step: tuple[int, ...], stays: tuple[int, ...], widths: set[int | None]) -> tuple[int, ...]:
    """The one axis that stays; else the one, or the adjacent ones together, as wide as a layer around the neuron.

    Behind a larger axis, axes of size 1 do not count: [N, C, 1, 1] has its channels on axis 1. In front they do:
    [N, 1, L] may be a mean over the channels. Three axes together are a map before it is flattened, not channels.
    """
    if len(stays) == 1 and step[stays[0]] > 1:
        return stays
    axes = [i for i in stays if step[i] > 1 or all(step[j] == 1 for j in stays if j < i)]
    groups = [group for n in (1, 2) for group in combinations(axes, n)]
    fitting = [group for group in groups if math.prod(step[i] for i in group) in widths]
    if len(fitting) != 1:
        return ()
    (group,) = fitting
    run = tuple(range(group[0], group[-1] + 1))
    return run if all(i in group or (i in stays and step[i] == 1) for i in run) else ()


def _set_clocks(sites: list[Site], seen: Probe) -> None:
    """Give every unfolded site an earlier one that sees T."""
    order = {s.path: seen.example.calls[s.path][0].order for s in sites if s.calls}
    for site in sites:
        if "steps" in site.around and site.verdict in SWAPPED:
            earlier = [
                s
                for s in sites
                if s.calls
                and s.time_dim == 0
                and not {"steps", "batch"} & s.around.keys()
                and s.verdict in RESOLVED
                and s.steps == site.steps
                and order[s.path] < order[site.path]
            ]
            site.clock = max(earlier, key=lambda s: order[s.path], default=None)
            if site.clock is None:
                site.refuse(
                    "batch folded into time",
                    "no neuron before it sees the axis of time, so the present T is not known when it is called: use "
                    "folded='reproduce', or keep it with swap.Keep()",
                )


def _warnings(
    model: nn.Module, sites: list[Site], seen: Probe, layout: Layout, time_dim: int | str
) -> list[str]:
    """What concerns the whole model."""
    swapped = [s for s in sites if s.verdict in SWAPPED]
    counting = any(isinstance(s.target, MSF) and s.target.D > 1 for s in swapped)
    rates = guards.rate_buffers(model) if counting else []
    found = [f"{name} holds a firing rate: a mean of counts may exceed 1" for name in rates]
    outputs = seen.example.outputs
    if time_dim == "auto" and layout.time == 0 and seen.other is not None and set(seen.grown) == {0, 1}:
        pairs = [
            (a, b) for a, b in zip(outputs, seen.other.outputs, strict=False) if a and b and len(a) == len(b)
        ]
        changes = {b[i] - a[i] for a, b in pairs for i in range(len(a))}
        if pairs and seen.grown[1] not in changes and seen.grown[0] in changes:
            found.append(
                "the output follows axis 0 of the input and not axis 1: if the input is [N, T, *], say time_dim=1"
            )
    if any(s.host is not None and s.host.__name__.endswith(".snntorch.host") for s in swapped):
        found.append(
            "snntorch.utils.reset does not reach the new neurons: use msf_pmsn_plugins.snntorch.reset(net)"
        )
    once = [s for s in swapped if s.verdict == "single-step" and s.calls == 1]
    if once:
        found.append(
            f"{short([s.name for s in once], len(sites))} took one single step in this forward pass: give whole "
            "sequences only if the model is set to multi-step"
        )
    return found
