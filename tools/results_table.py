"""Write the table of a quickstart run into README.md and docs/results.md; ``make results`` measures and calls it."""

import json
import re
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent))

import provenance

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "quickstart.json"
BEGIN, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"
WHAT = {
    "MNIST-1D": "MNIST-1D: 40 numbers, one a step, the same three-layer net",
    "Digits": "Digits: an image in 4 steps, SEW-ResNet-18 swapped in one line",
}


def rows_of(report: dict) -> dict[tuple[str, str], list[dict]]:
    """The runs of each task and neuron, one per seed, instruction set and number of threads."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for run in report["runs"]:
        rows.setdefault((run["task"], run["neuron"]), []).append(run)
    return rows


def accuracy(runs: list[dict]) -> str:
    """Mean and range of the accuracies after the last epoch, %."""
    last = [run["curve"][-1] for run in runs]
    spread = f" ({min(last):.1f} to {max(last):.1f})" if len(runs) > 1 else ""
    return f"{mean(last):.1f}{spread}"


def what(report: dict) -> str:
    """What the numbers are means of."""
    seeds = len({run["seed"] for run in report["runs"]})
    sets = len({run.get("instructions") for run in report["runs"]})
    said = f"Mean and range of {seeds} seeds" if seeds > 1 else "One seed"
    said += f" with each of {sets} instruction sets" if sets > 1 else ""
    threads = sorted({run["threads"] for run in report["runs"]})
    return said + f", on {' and '.join(map(str, threads))} thread{'s' if max(threads) > 1 else ''}"


def short(report: dict) -> str:
    """A row a task, a column a neuron: what the swap is for."""
    rows = rows_of(report)
    lines = ["| test accuracy, % | LIF or IF | MSF | PMSN |", "| --- | ---: | ---: | ---: |"]
    for task, text in WHAT.items():
        cells = [accuracy(rows[key]) for key in rows if key[0] == task and key[1] != "SlidingPSN"]
        lines.append(f"| {' | '.join((text, *cells))} |")
    return "\n".join([*lines, "", f"{what(report)}, by `make results`."])


def table(report: dict) -> str:
    """The Markdown table of a report that quickstart.py wrote with --json."""
    lines = [
        "| task | neuron | parameters | spikes per neuron and step | train seconds, one thread | test accuracy, % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (task, neuron), runs in rows_of(report).items():
        spikes = mean(run["spikes"] for run in runs)
        seconds = mean(run["seconds"] for run in runs if run["threads"] == 1)
        cells = f"{runs[0]['parameters']:,}", f"{spikes:.3f}", f"{seconds:.0f}", accuracy(runs)
        lines.append(f"| {' | '.join((task, neuron, *cells))} |")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join([*lines, "", f"{what(report)}; {versions}; {provenance.line(report)}."])


PAGES = {ROOT / "README.md": short, ROOT / "docs" / "results.md": table}


def written(page: str, text: str) -> str:
    """``page`` with ``text`` between its two markers."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    new, count = re.subn(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"expected one pair of markers, found {count}")
    return new


if __name__ == "__main__":
    report = json.loads(REPORT.read_text())
    for path, form in PAGES.items():
        path.write_text(written(path.read_text(), form(report)))
        print(f"wrote the table into {path.relative_to(ROOT)}")
