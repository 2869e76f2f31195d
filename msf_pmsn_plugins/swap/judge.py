"""Verdicts: whether a site can be swapped as planned, and what would resolve it if not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from . import guards
from .channels import find_channels
from .layout import Layout
from .probe import Call, Probe
from .site import RESOLVED, SWAPPED, Site
from .spec import MSF, PMSN

__all__ = ["guard", "judge", "set_clocks"]


def judge(site: Site, seen: Probe, layout: Layout) -> None:
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
    else:
        _judge_time(site, second, seen, layout)
    if site.verdict in SWAPPED:
        find_channels(site, first, second, layout)


def _judge_time(site: Site, second: Call | None, seen: Probe, layout: Layout) -> None:
    """Whether the axis that a neuron takes for time is time."""
    if site.calls > 1 and site.rule.repeated != "carry" and site.around.get("keeps_state", True):
        site.refuse(
            "called more than once",
            "its state would run on into the next call: if that is meant, as with the old one, say "
            "rules={path: swap.Rule(repeated='carry')}; or keep it with swap.Keep()",
        )
    elif site.rule.time_dim is None and not site.unfolds and not _follows(site, second, seen, layout):
        if _folded(site, second, layout):
            _judge_fold(site, layout)
        else:
            site.refuse(
                "no time axis",
                f"it takes sequences, but axis {site.time_dim} of its input {site.shape} does not follow T: name the "
                "axis with rules={path: swap.Rule(time_dim=...)}, or keep it with swap.Keep()",
            )
    if site.verdict == "ok" and isinstance(site.target, PMSN) and site.steps == 1 and not site.by_rule:
        site.refuse(
            "no time to integrate",
            "the example has T = 1: give an example with more steps, use MSF, or, if one step is meant, name the "
            "target in rules={path: swap.PMSN(...)}",
        )


def _judge_fold(site: Site, layout: Layout) -> None:
    """What to do with [T*B, *] in a multi-step neuron."""
    steps, batch = layout.first
    if site.rule.folded is None:
        site.refuse(
            "batch folded into time",
            f"axis 0 of its input {site.shape} is T*B = {steps}*{batch}, so one sample's spikes reach the next: "
            "keep that as published with rules={path: swap.Rule(folded='reproduce')}, or unfold it with 'fix'",
        )
    elif site.rule.folded == "fix":
        site.around["steps"] = steps
    else:
        site.around["batch"] = True


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


def guard(model: nn.Module, site: Site, gates: Mapping[str, str], seen: Probe) -> None:
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


def set_clocks(sites: list[Site], seen: Probe, layout: Layout) -> None:
    """Give every unfolded site an earlier one that sees T."""
    order = {s.path: seen.example.calls[s.path][0].order for s in sites if s.calls}
    for site in sites:
        if "steps" in site.around and not site.unfolds and site.verdict in SWAPPED:
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
            if site.clock is None and layout.time is not None:  # the model keeps no T of its own
                site.refuse(
                    "batch folded into time",
                    "no neuron before it sees the axis of time, so the present T is not known when it is called: use "
                    "folded='reproduce', or keep it with swap.Keep()",
                )
