"""A plan as text and as a table."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .attached import hooks_on
from .site import RESOLVED, SWAPPED, Site, around, words
from .spec import MSF

if TYPE_CHECKING:
    from .plans import Plan

__all__ = ["by_reason", "count", "short", "table_html", "text"]


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    heads = ("neuron", "now", "becomes", "calls", "one step", "time", "channels", "verdict")
    rows = [
        (
            s.name + " (output)" * s.gives_output,
            s.old,
            _label(s),
            str(s.calls),
            _shape(s),
            _time(s),
            _channels(s),
            s.verdict,
        )
        for s in plan.sites
    ]
    usual = {"calls": {"0", "1"}, "time": {"axis 0", "-"}}  # then the column would say nothing
    columns = [
        i
        for i, head in enumerate(heads)
        if {row[i] for row in rows} - usual.get(head, {""}) or head == "channels"
    ]
    return [tuple(row[i] for i in columns) for row in (heads, *rows)]


def _remarks(plan: Plan) -> list[str]:
    number = f"{len(plan.sites)} neuron{'s' * (len(plan.sites) != 1)}"
    lines = [f"{number}: {count(plan.sites)}; dynamics={plan.dynamics!r}; {plan.layout}"]
    swapped = [s for s in plan.sites if s.verdict in SWAPPED]
    hidden = ("channels", "channel_dim")  # the table shows them
    for title, texts in (
        ("keeps", {s.path: _list(s.carried) for s in swapped}),
        ("sets", {s.path: _list({k: v for k, v in s.sets.items() if k not in hidden}) for s in swapped}),
        ("moves hooks", {s.path: ", ".join(hooks_on(s.module)) for s in swapped}),
        ("wraps", {s.path: _list(around(s)) for s in swapped}),
    ):
        for line in dict.fromkeys(line for line in texts.values() if line):
            paths = [s.name for s in swapped if texts[s.path] == line]
            lines.append(f"  {title} at {short(paths, len(swapped))}: {line}")
    shared = {tuple(sorted([s.path, *s.shared_with])) for s in swapped if s.shared_with}
    lines += [f"  {' and '.join(paths)} are one module and stay one" for paths in sorted(shared)]
    noted = by_reason(s for s in plan.sites if s.note)
    lines += [f"  {', '.join(paths)}: {why}" for why, paths in noted.items()]
    return lines + [
        f"  warning {line}" if line.startswith("at ") else f"  warning: {line}"
        for line in plan.all_warnings()
    ]


def text(plan: Plan) -> str:
    """The table and the remarks below it."""
    rows = _rows(plan)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines + _remarks(plan))


def table_html(plan: Plan) -> str:
    """The same as HTML, with unresolved sites marked."""

    def row(cells: Sequence[str], tag: str, style: str = "") -> str:
        return f"<tr{style}>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    heads, *rows = _rows(plan)
    marked = ' style="color: #b00020; font-weight: bold"'
    body = "".join(
        row(cells, "td", "" if site.verdict in RESOLVED else marked)
        for cells, site in zip(rows, plan.sites, strict=True)
    )
    remarks = html.escape("\n".join(_remarks(plan)))
    return f"<table><thead>{row(heads, 'th')}</thead><tbody>{body}</tbody></table><pre>{remarks}</pre>"


def count(sites: Iterable[Site]) -> str:
    """How many sites have which verdict, in words."""
    counts = Counter(s.verdict for s in sites)
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def by_reason(sites: Iterable[Site]) -> dict[str, list[str]]:
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
        f"{key}={value if isinstance(value, str) and key == 'charge' else words(value)}"
        for key, value in values.items()
    )


def _label(site: Site) -> str:
    if site.verdict in ("keep", "readout", "never called", "inside"):
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
