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
PAGES = [ROOT / "README.md", ROOT / "docs" / "results.md"]
BEGIN, END = "<!-- results: written by tools/results_table.py -->", "<!-- end of results -->"


def table(report: dict) -> str:
    """The Markdown table of a report that quickstart.py wrote with --json."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for run in report["runs"]:
        rows.setdefault((run["task"], run["neuron"]), []).append(run)
    lines = [
        "| task | neuron | parameters | spikes per neuron and step | train seconds | test accuracy, % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (task, neuron), runs in rows.items():
        last = [run["curve"][-1] for run in runs]
        spread = f" ({min(last):.1f} to {max(last):.1f})" if len(runs) > 1 else ""
        spikes, seconds = mean(run["spikes"] for run in runs), mean(run["seconds"] for run in runs)
        cells = f"{runs[0]['parameters']:,}", f"{spikes:.3f}", f"{seconds:.0f}", f"{mean(last):.1f}{spread}"
        lines.append(f"| {' | '.join((task, neuron, *cells))} |")
    seeds = len({run["seed"] for run in report["runs"]})
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    sets = len({run.get("instructions") for run in report["runs"]})
    what = f"Mean and range of {seeds} seeds" if seeds > 1 else "One seed"
    what += f" with each of {sets} instruction sets" if sets > 1 else ""
    measured = f"CPU, {report['threads']} threads; {provenance.line(report)}"
    return "\n".join([*lines, "", f"{what}; {versions}; {measured}."])


def with_table(page: str, report: dict) -> str:
    """``page`` with the table between its two markers."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    new, count = re.subn(pattern, lambda _: f"{BEGIN}\n\n{table(report)}\n\n{END}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"expected one pair of markers, found {count}")
    return new


if __name__ == "__main__":
    report = json.loads(REPORT.read_text())
    for path in PAGES:
        path.write_text(with_table(path.read_text(), report))
        print(f"wrote the table into {path.relative_to(ROOT)}")
