"""Which axes of the example are time and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from .probe import Call, Probe
from .site import Site

__all__ = ["Layout", "find_layout"]


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


def find_layout(model: nn.Module, sites: list[Site], seen: Probe, time_dim: int | str) -> Layout:
    """Which axis of the input is time: the one that the sequences, or the number of single steps, follow."""
    votes: Counter[int | None] = Counter()
    inner: Counter[int] = Counter()  # T of models that repeat their input themselves
    for site in sites:
        votes.update(_followed(site, seen))
        inner.update(_unchanged(site, seen))
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

    return Layout(seen.sizes, time, batch, sizes({}), None if seen.other is None else sizes(seen.grown))


def _followed(site: Site, seen: Probe) -> list[int | None]:
    """The axis of the input that the site's time followed, None where it followed none; empty where none can tell."""
    first, second = _both(site, seen)
    if first is None or second is None:
        return []
    if site.time_dim is not None:
        n, m = first.shape[site.time_dim], second.shape[site.time_dim]
        axis = next((a for a, more in seen.grown.items() if m == n + more and seen.sizes[a] == n), None)
        return [axis] if axis is not None or m == n else []
    assert seen.other is not None
    n, m = site.calls, len(seen.other.calls[site.path])
    axis = next(
        (a for a, more in seen.grown.items() if n * (seen.sizes[a] + more) == m * seen.sizes[a]), None
    )
    return [axis] if n != m and axis is not None else []


def _unchanged(site: Site, seen: Probe) -> list[int]:
    """T of a site whose time stayed as it was."""
    first, second = _both(site, seen)
    if first is None or second is None or site.time_dim is None:
        return []
    n, m = first.shape[site.time_dim], second.shape[site.time_dim]
    return [n] if m == n else []


def _both(site: Site, seen: Probe) -> tuple[Call | None, Call | None]:
    """The site's first call in either run, if both have as many axes."""
    first = seen.example.first(site.path)
    second = None if seen.other is None else seen.other.first(site.path)
    if first is None or second is None or len(first.shape) != len(second.shape):
        return None, None
    return first, second
