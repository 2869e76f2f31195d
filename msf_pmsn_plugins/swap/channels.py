"""Which axis of a site's step holds the channels."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from .layout import Layout
from .probe import Call
from .site import Site
from .spec import PMSN

__all__ = ["find_channels"]


def find_channels(site: Site, call: Call, other: Call | None, layout: Layout) -> None:
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
    if "steps" in around and not site.unfolds and layout.second is not None:
        around["steps"] = layout.second[0]
    other_site = Site(
        site.path, site.old, site.target, shape=other.shape, time_dim=site.time_dim, around=around
    )
    return tuple(i for i, (n, m) in enumerate(zip(step, other_site.step_shape, strict=True)) if i and n == m)


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
