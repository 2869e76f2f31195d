"""Make measured tables anew: those whose sources have changed, with the pages that show them.

    make results                             the stale ones; all of them take about two hours of a quiet machine
    python tools/results.py digits sweep     these, stale or not
    python tools/results.py --check          only say which are stale
    python tools/results.py --published DIR  with the rows of the MSF authors' weights, from a clone of their repository

Sums are added up in another order with other vector instructions, and in trainings as short as these that moves an
accuracy as much as a seed does. So what trains is run once with each instruction set of torch that this CPU has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import provenance
from provenance import ROOT, Machine, digest, report_of


def command(table: str, target: Path, published: Path | None) -> list[str]:
    """What measures ``table`` into ``target``."""
    if table == "benchmarks":
        return ["benchmarks/cpu.py", "--json", str(target)]
    if table == "quickstart":
        figure = str(ROOT / "docs" / "quickstart.png")
        return ["examples/quickstart.py", "--seeds", "3", "--json", str(target), "--out", figure]
    more = ["--published", str(published)] if published and table == "experiments/sine" else []
    return [f"examples/{table}.py", "--json", str(target), *more]


def instruction_sets() -> list[str]:
    """Those of torch that this CPU has and that vectorise."""
    best = Machine.here().instructions
    return ["AVX2", "AVX512"] if best == "AVX512" else [best]


def measure(table: str, sets: list[str], published: Path | None) -> dict[str, Any]:
    """The report of ``table``: the rows of all instruction sets, and what was measured.

    Raises:
        SystemExit: the measuring failed, or the sources changed meanwhile.
    """
    before, machine = digest(table), Machine.here()
    merged: dict[str, Any] = {}
    for name in sets:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "report.json"
            done = subprocess.run(
                [sys.executable, *command(table, target, published)],
                cwd=ROOT,
                env={**os.environ, "ATEN_CPU_CAPABILITY": name.lower()},
                check=False,
            )
            if done.returncode or not target.exists():
                raise SystemExit(f"{table} could not be measured; its report is as before")
            report = json.loads(target.read_text())
        merged = merge(merged, report, name)
    if digest(table) != before:
        raise SystemExit(f"the sources of {table} changed while it was measured; its report is as before")
    merged["measured"] = {
        "commit": machine.commit,
        "cpu": machine.cpu,
        "instructions": sets,
        "threads": merged.get("threads", os.cpu_count()),
        "sources": before,
    }
    return merged


def merge(merged: dict[str, Any], report: dict[str, Any], instructions: str) -> dict[str, Any]:
    """``merged`` with the rows of one more run, which say their instruction set."""
    rows = next((key for key in ("rows", "runs") if key in report), None)
    if rows is None:
        return report
    for row in report[rows]:
        row["instructions"] = instructions
    if not merged:
        return report
    seconds = {"seconds": merged["seconds"] + report["seconds"]} if "seconds" in merged else {}
    return {**merged, **seconds, rows: merged[rows] + report[rows]}


def keep_published(report: dict[str, Any], before: dict[str, Any]) -> None:
    """Take over the rows of the authors' weights, which need their repository, and say when they were measured."""
    names = {row["neuron"] for row in report["rows"]}
    kept = [row for row in before["rows"] if row["neuron"] not in names and "seed" not in row]
    since = before.get("measured", {}).get("commit", "an earlier version")
    report["rows"] += [{"measured": since, **row} for row in kept]


def write(table: str, report: dict[str, Any]) -> None:
    path = report_of(table)
    if table == "experiments/sine" and path.exists():
        keep_published(report, json.loads(path.read_text()))
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=2 if table == "quickstart" else 1) + "\n")
    partial.replace(path)


def pages(tables: list[str]) -> None:
    """Write the pages of ``tables`` from their reports."""
    scripts = {"benchmarks": "benchmarks/cpu.py --page", "quickstart": "tools/results_table.py"}
    for script in {scripts.get(table, "examples/experiments/run.py --page") for table in tables}:
        subprocess.run([sys.executable, *script.split()], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help="the last part of their names")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--published", type=Path)
    arguments = parser.parse_args()
    names = {table.split("/")[-1]: table for table in provenance.SOURCES}
    if unknown := set(arguments.tables) - names.keys():
        raise SystemExit(f"unknown tables {sorted(unknown)}; known: {', '.join(names)}")
    reasons = provenance.stale()
    if arguments.check:
        print(
            "\n".join(f"stale: {table}: {reason}" for table, reason in reasons.items()) or "no table is stale"
        )
        return
    failed = []
    for table in [names[name] for name in arguments.tables] or list(reasons):
        # times are of the best instruction set; the benchmarks check their numbers and publish times alone
        sets = instruction_sets()[-1:] if table == "benchmarks" else instruction_sets()
        print(f"== {table}: {reasons.get(table, 'asked for')}", flush=True)
        try:
            write(table, measure(table, sets, arguments.published))
        except SystemExit as error:
            failed.append(str(error))
            continue
        pages([table])
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
