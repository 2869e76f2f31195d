"""Look at the neurons of a model and judge what a swap would make of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..tensors import state_dtype
from ..words import teaching_call
from . import guards
from .attached import lost_with, reparametrised
from .dynamics import arguments, explain, fingerprint
from .experiments import Observed, observe
from .judge import guard, judge, set_clocks
from .layout import Layout, find_layout
from .plans import Plan
from .printing import short
from .probe import Probe, probe
from .rehearse import rehearse
from .running import undisturbed
from .site import SWAPPED, Site
from .sites import find, like_neurons, steps_of
from .spec import (
    MSF,
    OF_A_PLAN,
    PMSN,
    Keep,
    Read,
    Reading,
    Rule,
    SwapError,
    Target,
    applies,
    given,
    require_built,
)
from .wrappers import refuse_wrapped

__all__ = ["plan"]

AGAIN = "Put it on the new neuron after the swap, or on the module around it"


@teaching_call("swap.plan", OF_A_PLAN)
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
        TypeError, ValueError: a model or a target that is none, a word of somebody else, unknown dynamics.
    """
    require_built(model)
    _check(target, dynamics, rules or {}, time_dim)
    sites = _sites(model, target, neuron_classes)
    refuse_wrapped(model, [s.path for s in sites])
    _apply_rules(sites, filter_fn, rules or {})
    sequences = any(s.role == "own" or steps_of(s.module) == "m" for s in sites)
    seen = probe(model, {s.path: s.module for s in sites}, example_input, sequences)
    with undisturbed(model):  # a copy of a neuron may share something with it
        layout = _judged(model, sites, seen, dynamics, time_dim)
    plan = Plan(model, sites, dynamics, layout)
    rehearse(plan, example_input, seen)
    plan.warnings = _warnings(plan, seen, time_dim)
    return plan


def _judged(model: nn.Module, sites: list[Site], seen: Probe, dynamics: str, time_dim: int | str) -> Layout:
    """Set all verdicts and the arguments of the new neurons."""
    memory: dict[Any, Any] = {}  # of experiments with neurons that are alike
    for site in sites:
        _look(site, seen, memory)
    layout = find_layout(model, sites, seen, time_dim)
    gates = guards.gated(model, [s.path for s in sites], seen.example)
    for site in sites:
        outer = _replaced_around(site, sites)
        if outer is not None:
            site.refuse("inside", f"lies in {outer.name}, which is replaced whole")
        if site.verdict == "ok":
            judge(site, seen, layout)
        if site.verdict in SWAPPED:
            guard(model, site, gates, seen)
        if site.verdict in SWAPPED:
            try:
                site.arguments = arguments(site, dynamics, memory)
                explain(site, dynamics)
                site.warnings += _of_the_attached(site)
            except ValueError as error:
                site.refuse("unsupported dynamics", str(error))
    set_clocks(sites, seen, layout)
    return layout


def _check(
    target: Any,
    dynamics: str,
    rules: Mapping[Any, Any],
    time_dim: int | str,
) -> None:
    """Raise TypeError or ValueError for arguments of :func:`plan` that mean nothing."""
    if not isinstance(target, MSF | PMSN):
        raise TypeError(f"target must be swap.MSF(...) or swap.PMSN(...), got {given(target, MSF, PMSN)}")
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules are a mapping from a path to a target or a swap.Rule, got {rules!r}")
    for pattern, rule in rules.items():
        if not isinstance(rule, Target | Rule):
            raise TypeError(
                f"rule {pattern!r} must name a swap.MSF, swap.PMSN, swap.Keep or swap.Rule, got "
                f"{given(rule, MSF, PMSN, Keep, Rule)}"
            )
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(
                f"a rule is found by a path, 're:..' or a predicate (module, path) -> bool, got {pattern!r}"
            )
    if dynamics not in ("site", "published"):
        raise ValueError(f"unknown dynamics {dynamics!r}; known: 'site', 'published'")
    if time_dim not in ("auto", 0, 1):
        raise ValueError(f"time_dim is 'auto', 0 ([T, N, *]) or 1 ([N, T, *]), got {time_dim!r}")


def _sites(
    model: nn.Module, target: Target, neuron_classes: Sequence[type] | Mapping[type, Reading]
) -> list[Site]:
    """The neurons of ``model``; raise SwapError if there is none."""
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
    return sites


def _replaced_around(site: Site, sites: list[Site]) -> Site | None:
    """The site around this one that is, or would be, replaced whole."""
    around = (s for s in sites if s is not site and (not s.path or site.path.startswith(f"{s.path}.")))
    return next((s for s in around if s.verdict not in ("keep", "readout", "never called", "inside")), None)


def _no_neurons(model: nn.Module) -> str:
    text = (
        f"{type(model).__name__} has no neuron to swap: known are the neurons of SpikingJelly and snnTorch and copies "
        "of them. A model that was swapped already has none left"
    )
    names = sorted({*like_neurons(model).values()})
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
            if applies(key, site.path, site.module):
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


def _look(site: Site, seen: Probe, memory: dict[Any, Any]) -> None:
    """Take over what the probe saw; set the final verdicts, and how the neuron steps."""
    calls = seen.example.calls[site.path]
    site.calls = len(calls)
    if calls:
        # States are float32 here, half in most hosts; integers are taken as floats.
        site.shape, site.device, site.dtype = calls[0].shape, calls[0].device, state_dtype(calls[0].dtype)
    assert site.host is not None
    site.step_mode = "s" if site.role in ("own", "activation") else steps_of(site.module)
    if isinstance(site.target, Keep):
        site.verdict = "keep"
    elif site.host.is_readout(site.module):
        site.refuse("readout", "integrates without firing (infinite threshold): it stays")
    elif not calls:
        site.refuse("never called", "the forward pass does not reach it: it stays")
    elif site.role != "activation" and (why := reparametrised(site.module)) is not None:
        site.refuse("unsupported dynamics", f"{why}, or keep this site with rules={{path: swap.Keep()}}")
    elif site.role in ("own", "relative"):
        _experiment(site, memory)
    if site.step_mode == "m" and site.shape and site.time_dim is None:
        site.time_dim = 0
    if site.rule.time_dim is not None and site.shape:
        site.time_dim = site.rule.time_dim % len(site.shape)
        site.step_mode = "m"
    if site.rule.keeps_state is False:
        site.around["keeps_state"] = False


def _experiment(site: Site, memory: dict[Any, Any]) -> None:
    """Find out by experiment how a neuron of an unknown class steps, what it keeps and what it emits."""
    if site.device.type == "meta":
        site.refuse("unsupported dynamics", f"{site.old} cannot be tried on the meta device")
        return
    try:
        key = ("observe", fingerprint(site.module), site.shape[:1], len(site.shape))
        if key not in memory:
            memory[key] = observe(site.module, site.shape, site.device, site.dtype)
        found = memory[key]
    except ValueError as error:
        site.refuse("unsupported dynamics", str(error))
        return
    keeps = found.keeps_state
    if found.unfolds is not None and site.rule.time_dim is None:
        _unfold(site, found.unfolds)
    elif (
        site.role == "relative"
        and site.step_mode == "s"
        and 0 in found.time_dims
        and site.rule.time_dim is None
    ):
        site.refuse(
            "no time axis",
            f"it counts as single-step, [N, *], but the rows of its input {site.shape} reach one another: if axis 0 is "
            "time, say rules={path: swap.Rule(time_dim=0)}; else keep it with swap.Keep()",
        )
        return
    elif isinstance(site.reading, Read):
        told = site.reading.get("keeps_state", site.module)
        keeps = keeps if told is None else bool(told)
        if not _find_steps(site, site.reading, found, keeps):
            return
    if not keeps:
        site.around["keeps_state"] = False
    _find_scale(site, found.unit)
    memory["levels", site.path] = max(1, round(found.largest / found.unit)) if found.unit else 1


def _unfold(site: Site, steps: int) -> None:
    """A neuron that takes [T*B, *] for T steps of B samples: so must the new one."""
    site.step_mode, site.time_dim, site.unfolds = "m", 0, steps
    site.around["steps"] = steps
    if site.rule.folded is None:
        site.refuse(
            "unfolds time itself",
            f"it takes the {site.shape[0]} rows of its input {site.shape} for T = {steps} steps of "
            f"{site.shape[0] // steps} samples: let the new neuron do the same with rules={{path: "
            "swap.Rule(folded='fix')}, or keep it with swap.Keep()",
        )


def _find_steps(site: Site, reading: Read, found: Observed, keeps: bool) -> bool:
    """Whether a neuron of one's own takes steps or sequences, and where time is; False if it is refused."""
    site.step_mode = reading.get("step_mode", site.module) or ("m" if found.time_dims else "s")
    if site.step_mode == "m":
        site.time_dim = reading.get("time_dim", site.module)
        if site.time_dim is None:
            if len(found.time_dims) != 1:
                axes = f"axes {found.time_dims}" if found.time_dims else "no axis"
                site.refuse(
                    "no time axis",
                    f"earlier input changes later output along {axes} of its input {site.shape}: say which axis "
                    f"is time with neuron_classes={{{site.old}: swap.Read(time_dim=...)}}",
                )
                return False
            (site.time_dim,) = found.time_dims
    elif not keeps:
        site.refuse(
            "unsupported dynamics",
            f"{site.old} keeps no state from step to step: if it is an activation, read it as one with "
            f"neuron_classes={{{site.old}: swap.Activation()}}",
        )
        return False
    return True


def _find_scale(site: Site, unit: float | None) -> None:
    """What counts are multiplied by, where the old neuron emits multiples of another number than 1."""
    if unit is None:
        site.refuse("unsupported dynamics", f"{site.old} emits real numbers, not spikes")
    elif not math.isclose(unit, 1.0, rel_tol=1e-6):
        if site.rule.output_scale is None:
            site.refuse(
                "non-unit output scale",
                f"it emits multiples of {unit:.6g}, not counts: multiply the counts by it with "
                "rules={path: swap.Rule(output_scale='keep')}, or emit counts with 'drop'",
            )
        elif site.rule.output_scale == "keep":
            site.around["scale"] = unit


def _warnings(plan: Plan, seen: Probe, time_dim: int | str) -> list[str]:
    """What concerns the whole model."""
    sites = plan.sites
    swapped = [s for s in sites if s.verdict in SWAPPED]
    found = [
        f"{name} at {path or '(the model)'} looks like a neuron and stays: if it is one, name its class in "
        "neuron_classes=(..)"
        for path, name in like_neurons(plan.model, [s.path for s in sites]).items()
    ]
    counting = any(isinstance(s.target, MSF) and s.target.D > 1 for s in swapped)
    rates = guards.rate_buffers(plan.model) if counting else []
    found += [f"{name} holds a firing rate: a mean of counts may exceed 1" for name in rates]
    found += _of_the_output(swapped, seen)
    found += _of_the_axes(plan, seen) if time_dim == "auto" else []
    if plan.new_parameters:
        what = "parameter, which is" if plan.new_parameters == 1 else "parameters, which are"
        found.append(
            f"the new neurons bring {plan.new_parameters} {what} in no optimizer made before: make the optimizer after "
            "the swap"
        )
    found += sorted({s.host.ADVICE for s in swapped if s.host is not None} - {""})
    once = [s for s in swapped if s.verdict == "single-step" and s.calls == 1 and s.role != "activation"]
    if once:
        ways = sorted({s.host.SEQUENCES for s in once if s.host is not None}) or [
            "set the model to multi-step"
        ]
        found.append(
            f"{short([s.name for s in once], len(sites))} took one single step in this forward pass: before you give "
            f"whole sequences, {' and '.join(ways)}"
        )
    return found


def _of_the_attached(site: Site) -> list[str]:
    """What was put on the old neuron and stays there."""
    lost = lost_with(site.module)
    return [f"the new neuron has not what was put on the old one: {'; '.join(lost)}. {AGAIN}"] if lost else []


def _of_the_output(swapped: list[Site], seen: Probe) -> list[str]:
    """Mark the sites that give the model's output, and say what that means."""
    found = []
    for site in swapped:
        site.gives_output = any(call.is_output for call in seen.example.calls[site.path])
        if not site.gives_output or (isinstance(site.target, MSF) and site.target.D == 1):
            continue
        what = f"counts 0..{site.target.D}" if isinstance(site.target, MSF) else "spikes of a PMSN"
        found.append(
            f"{site.name} gives the model's output: it becomes {what}; if the loss was made for the old neuron's, keep "
            "that site with swap.Keep()"
        )
    return found


def _of_the_axes(plan: Plan, seen: Probe) -> list[str]:
    """Where the output follows axis 0 of the input alone, that may be the batch."""
    if plan.layout.time != 0 or seen.other is None or set(seen.grown) != {0, 1}:
        return []
    outputs = zip(seen.example.outputs, seen.other.outputs, strict=False)
    pairs = [(a, b) for a, b in outputs if a and b and len(a) == len(b)]
    changes = {b[i] - a[i] for a, b in pairs for i in range(len(a))}
    if pairs and seen.grown[1] not in changes and seen.grown[0] in changes:
        return [
            "the output follows axis 0 of the input and not axis 1: if the input is [N, T, *], say time_dim=1"
        ]
    return []
