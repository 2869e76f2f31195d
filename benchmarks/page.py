"""docs/benchmarks.md and its figure, from a report of cpu.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import paths

INTRODUCTION = """\
How much faster is a training step, or inference, than with the neuron that you have? Numbers above 1: so many times
faster than the neuron of the column, forward and backward / inference, on one thread.
"""

METHOD = """\
`make bench` repeats all of it and rewrites this page (ten minutes of a quiet machine). Results are checked before
anything is timed; rivals take turns in one run, each in its own memory layout; times are medians. The published forms
are written anew from their equations, in the best torch we know. Only the published forms, the step loop and the torch
backend compute the same function as ours; the others are different neurons. Freed memory stays with the process, for
all alike (glibc's `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_`); `--malloc default` measures with page faults.
All medians and minima, on one and two threads, are in [benchmarks.json](benchmarks.json).
"""

COLUMNS = {
    "MSF": ("SpikingJelly LIFNode", "snnTorch Leaky loop", "published loop"),
    "PMSN": ("SpikingJelly PSN", "SpikingJelly SlidingPSN", "published FFT"),
}
# Ours are saturated, thick and filled; the others muted, dashed and hollow, and drawn above: equal times stay visible.
# No two share a marker or a dash: not everybody tells the colours apart.
OURS = {"linewidth": 3.0, "markersize": 6}
OTHERS = {"linewidth": 1.3, "markersize": 7.5, "markerfacecolor": "none", "zorder": 3}
STYLES: dict[str, dict[str, Any]] = {
    "PMSN": {**OURS, "color": "#0072b2", "marker": "o"},
    "MSF": {**OURS, "color": "#d55e00", "marker": "s"},
    "LIF loop": {**OTHERS, "color": "#404040", "marker": "^", "linestyle": "--"},
    "serial MSN": {**OTHERS, "color": "#8a8a8a", "marker": "X", "linestyle": ":"},
    "PSN": {**OTHERS, "color": "#7a9a86", "marker": "v", "linestyle": "-."},
    "SlidingPSN": {**OTHERS, "color": "#a58aa5", "marker": "D", "linestyle": (0, (6, 2))},
}


def _ratio(result: dict[str, Any], rival: str, count: str = "1") -> str:
    cells = []
    for mode in ("forward+backward", "forward"):
        times = result["times"][count][mode]
        cells.append(f"{times[rival][0] / times['ours'][0]:.1f}" if rival in times else "")
    return " / ".join(cells) if any(cells) else "too long"


def _memory(result: dict[str, Any], rival: str) -> str:
    ours, theirs = result["peak"].get("ours"), result["peak"].get(rival)
    return f"{ours / theirs:.0%}" if ours and theirs else ""


def gains(report: dict[str, Any]) -> list[str]:
    """What a user gains: one table a neuron."""
    lines = []
    for neuron, rivals in COLUMNS.items():
        results = [r for r in report["cases"] if r["neuron"] == neuron]
        if not results:
            continue
        published = rivals[-1]
        lines += [
            f"| {neuron}, [T, N, C, \\*] | {' | '.join(rivals)} | peak memory, of {published} |",
            "| --- | " + " | ".join("---:" for _ in (*rivals, "")) + " |",
        ]
        for result in results:
            cells = [_ratio(result, rival) for rival in rivals]
            lines.append(f"| {result['shape']} | {' | '.join(cells)} | {_memory(result, published)} |")
        lines.append("")
    return lines


def case_table(result: dict[str, Any]) -> str:
    """All rivals of one case."""
    numel = math.prod(result["shape"])
    lines = []
    for count, times in result["times"].items():
        many = "threads" if int(count) > 1 else "thread"
        copied = result["copy"][count]["fresh"] / 1e9
        lines += [
            f"**{result['case']}**, {count} {many}; a copy into fresh memory moves {copied:.1f} GB/s",
            "",
            "| | forward ms | forward+backward ms | saved B/element | peak MiB |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name in times["forward"]:
            saved, peak = result["saved"].get(name), result["peak"].get(name)
            cells = [f"{1e3 * times[mode][name][0]:.2f}" for mode in ("forward", "forward+backward")]
            cells.append("" if saved is None else f"{saved / numel:.1f}")
            cells.append("" if peak is None else f"{peak / 2**20:.0f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _folded(title: str, lines: list[str]) -> list[str]:
    """A section that opens on a click (pymdownx.details)."""
    return [f'??? note "{title}"', "", *(f"    {line}" if line else "" for line in lines), ""]


def page(report: dict[str, Any]) -> str:
    """The page as Markdown."""
    where = report["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in where["versions"].items() if found)
    lines = ["# Benchmarks on a CPU", "", INTRODUCTION, *gains(report)]
    if report["figure"]:
        lines += [
            "![One layer of 256 neurons over the sequence length](benchmarks.png)",
            "",
            "A batch of 16 through a linear layer and 256 neurons. PSN and SlidingPSN, whose weights are [T, T], end",
            "at 2,048 steps, the serial MSN at 512.",
            "",
        ]
    if report.get("paths"):  # a report from before they were measured has none
        lines += [
            "## Every way of calling",
            "",
            "Against the host's own neuron on the same path, one thread.",
            "",
        ]
        lines.append(paths.table(report["paths"]))
    lines += ["## How it was measured", "", METHOD]
    lines += [
        f"{where['cpu']}, {where['cores']} cores, {where['system']}, Python {where['python']}; {versions};",
        f"{report['date']}, commit {report.get('measured', {}).get('commit', 'not recorded')}.",
        "",
    ]
    lines += ["## Details", ""]
    if report["streaming"]:
        rows = [f"| {r['neuron']}, {r['call']} | {r['us']:.1f} |" for r in report["streaming"]]
        head = ["N = 1, C = 128, float32, inference, carrying the state.", "", "| | µs |", "| --- | ---: |"]
        lines += _folded("One step at a time", [*head, *rows])
    if report["first calls"]:
        rows = [f"| {r['neuron']} | {r['way']} | {r['seconds']:.1f} |" for r in report["first calls"]]
        head = ["Seconds until the float32 kernels are there; `warm_up()` pays them ahead.", ""]
        lines += _folded("The first call", [*head, "| neuron | | s |", "| --- | --- | ---: |", *rows])
    if report["scaling"]:
        rows = [f"| {r['neuron']} | {r['lanes']} | {r['steps']} | {r['ns']:.2f} |" for r in report["scaling"]]
        head = ["Forward and backward, two threads, nanoseconds for one step of one neuron.", ""]
        lines += _folded(
            "Time over T", [*head, "| neuron | lanes | T | ns |", "| --- | ---: | ---: | ---: |", *rows]
        )
    for result in report["cases"]:
        lines += _folded(result["case"], case_table(result).splitlines())
    return "\n".join(lines).rstrip() + "\n"


def figure(report: dict[str, Any], path: Path) -> None:
    """Milliseconds of a batch over the sequence length."""
    from matplotlib.figure import Figure

    if not report["figure"]:
        return
    drawing = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, mode in zip(drawing.subplots(1, 2, sharey=True), ("inference", "training"), strict=True):
        rows = [row for row in report["figure"] if row["mode"] == mode]
        for name in dict.fromkeys(row["name"] for row in rows):
            mine = [row for row in rows if row["name"] == name]
            axes.plot(
                [row["steps"] for row in mine],
                [1e3 * row["median"] for row in mine],
                label=name,
                **STYLES.get(name, OTHERS),
            )
        axes.set(yscale="log", xlabel="time steps", title=mode)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylabel("ms per batch of 16")
    drawing.axes[1].legend(frameon=False)
    drawing.savefig(path, dpi=150)
